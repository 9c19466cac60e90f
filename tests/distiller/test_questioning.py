import asyncio
from pathlib import Path

import pytest

from distiller.questioning import asker, price_of, sizes_of
from distiller.questions import Asker
from distiller.rationales import sort
from distiller.settings import Settings
from proxy.errors import BadInput
from proxy.log import Log
from proxy.settings import ProxySettings, TeacherSettings
from router.settings import MoneySettings, Price
from tests.logs import migrated
from tests.router.conftest import TASK


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return migrated(tmp_path)


async def opened(log: Log, settings: Settings) -> Asker:
    async with asker(log, settings, TASK, sort()) as found:
        return found


def test_only_with_a_key_of_our_own(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match=r"set teacher\.key_env"):
        asyncio.run(opened(log, Settings()))
    told = Settings(teacher=TeacherSettings(key_env="OUR_KEY"))
    monkeypatch.delenv("OUR_KEY", raising=False)
    with pytest.raises(BadInput, match="OUR_KEY"):
        asyncio.run(opened(log, told))
    monkeypatch.setenv("OUR_KEY", "sk-ours")
    assert isinstance(asyncio.run(opened(log, told)), Asker)


def test_prices_and_lengths_are_those_of_the_settings() -> None:
    settings = Settings(
        money=MoneySettings(prices={"mine": Price(input=1.0, output=2.0)}), proxy=ProxySettings(answer_tokens=77)
    )
    assert price_of(settings)("mine", 1_000_000, 0, 1_000_000) == pytest.approx(3.0)
    assert sizes_of(settings)("mine").answer == 77
