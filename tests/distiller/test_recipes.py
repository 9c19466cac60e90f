from distiller.engines import SMALL, VLLM
from distiller.settings import STUDENTS
from distiller.tries import KINDS


def test_every_kind_that_can_be_named_has_a_recipe_and_an_engine() -> None:
    assert tuple(kind.name for kind in KINDS) == STUDENTS
    assert {kind.engine for kind in KINDS} <= {VLLM, SMALL}
