import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.code_score import LONGEST, code_agreement, is_program, tree

PROGRAM = 'def area(r):\n    """Of a circle."""\n    return 3.14 * r ** 2  # roughly\n'


@pytest.mark.parametrize(
    "variant",
    [
        PROGRAM,
        "def area( r ):\n\treturn (3.14 * r**2)",
        f"Here it is:\n```python\n{PROGRAM}```\nUse it well.",
        f"```\n{PROGRAM}",
        f"  ```py\n{PROGRAM}  ```",
        f'"""A module."""\n{PROGRAM}',
    ],
)
def test_what_does_not_matter(variant: str) -> None:
    assert code_agreement(PROGRAM, variant) == code_agreement(variant, PROGRAM) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 1", "x = 1.0"), ("x = 1", "x = True"), ("x = 1", "y = 1"), ("f(a, b)", "f(b, a)"), ("[1]", "[1, 2]"),
        ("x = 1", "x = 1\ny = 2"), ("a - b", "a + b"), ("'1'", "1"), ("", ""), ("x = 'doc'", "x = 'other'"),
        ("def f(): 'a'; 1", "def f(): 'a'; 2"), ("f(*a)", "f(a)"), ("lambda: 1", "lambda x: 1"),
    ],
)  # fmt: skip
def test_what_does(one: str, other: str) -> None:
    assert code_agreement(one, other) == code_agreement(other, one) == 0


def test_only_a_docstring_is_a_function_that_does_nothing() -> None:
    assert code_agreement("def f():\n    'documented'", "def f(): pass") == 1
    assert code_agreement("x = u'a'", "x = 'a'") == 1


@pytest.mark.parametrize("broken", ["def", "a b", "", "# nothing", "\0", "```\n```", "x = 1\n```", "  x\n y", "\ud800"])
def test_what_does_not_parse_equals_nothing(broken: str) -> None:
    assert tree(broken) is None
    assert code_agreement(broken, broken) == 0


def test_several_blocks_are_one_program() -> None:
    assert code_agreement("```python\nx = 1\n```\nthen\n```python\ny = x\n```", "x = 1\ny = x") == 1


def test_an_escape_that_is_no_error_yet_is_code() -> None:
    assert code_agreement(r"x = '\d'", r"x = '\d'") == 1


@pytest.mark.parametrize(
    "deep",
    [
        "(" * 9_000,
        "-" * 9_000 + "1",
        "1+" * 9_000 + "1",
        "a" + ".b" * 9_000,
        "a" + "()" * 9_000,
        "x=" * 9_000 + "1",
    ],
)
def test_deep_code_neither_hangs_nor_crashes(deep: str) -> None:
    assert code_agreement(deep, deep) == float(tree(deep) is not None)


def test_too_long_to_be_read() -> None:
    assert tree("x=1\n" * (LONGEST // 4 + 1)) is None


@pytest.mark.parametrize(
    ("answer", "program"), [("bug", False), ("a.b(1)", False), ("x = 1", True), ("```py\nimport a\n```", True)]
)
def test_a_word_is_no_program(answer: str, program: bool) -> None:
    assert is_program(answer) is program


NAMES = st.sampled_from("abc")
EXPRESSIONS = st.recursive(
    NAMES | st.integers(0, 9).map(str) | st.text("xy", max_size=3).map(repr),
    lambda inner: (
        st.tuples(inner, inner).map(lambda two: f"({two[0]} + {two[1]})") | inner.map(lambda one: f"f({one})")
    ),
)


@given(st.lists(st.tuples(NAMES, EXPRESSIONS), min_size=1), st.lists(st.tuples(NAMES, EXPRESSIONS), min_size=1))
def test_it_agrees_with_the_tree_that_python_prints(one: list[tuple[str, str]], other: list[tuple[str, str]]) -> None:
    codes = ["\n".join(f"{name} = {value}" for name, value in lines) for lines in (one, other)]
    assert code_agreement(codes[0], codes[0]) == 1
    same = ast.dump(ast.parse(codes[0])) == ast.dump(ast.parse(codes[1]))
    assert code_agreement(*codes) == code_agreement(*reversed(codes)) == float(same)
