from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distiller.dashboard.houses import House, MakeHouse


@pytest.fixture
def house(tmp_path: Path) -> Iterator[MakeHouse]:
    made: list[House] = []

    def make(*given: object, **settings: object) -> House:
        made.append(House(tmp_path, *given, **settings))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close()
