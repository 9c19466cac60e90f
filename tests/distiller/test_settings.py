import dataclasses
from pathlib import Path

from distiller.settings import Settings


def test_everything_that_is_kept_lies_under_home(tmp_path: Path) -> None:
    settings = Settings(home=str(tmp_path))
    names = [name for name, one in vars(Settings).items() if isinstance(one, property) and name != "more_engine_states"]
    places = [getattr(settings, name) for name in names]
    assert len(places) > 10
    assert {place for place in places if not place.is_relative_to(tmp_path)} == set()
    assert len(set(places)) == len(places)


def test_settings_cannot_be_changed_while_they_are_used() -> None:
    assert all(one.__dataclass_params__.frozen for one in (Settings, *(type(part) for part in vars_of(Settings()))))


def vars_of(settings: Settings) -> list[object]:
    values = [getattr(settings, one.name) for one in dataclasses.fields(settings)]
    return [value for value in values if dataclasses.is_dataclass(value)]
