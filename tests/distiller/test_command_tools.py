import argparse
from pathlib import Path

import pytest

from distiller.command_tools import opened_log, sentence, show
from distiller.settings import Settings
from proxy.errors import Unavailable
from proxy.log import open_log
from proxy.migrations import migrate, version


def test_without_a_log_it_says_what_to_start(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="start `stillroom serve` first"):
        opened_log(Settings(home=str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_the_log_of_the_settings_is_opened(tmp_path: Path) -> None:
    settings = Settings(home=str(tmp_path))
    made = open_log(settings.log, settings.folder)
    number = migrate(made)
    made.close()
    assert version(opened_log(settings, read_only=True)) == number


def test_a_value_is_shown_to_scripts_and_to_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert show(argparse.Namespace(json=True), {"task": "a"}, sentence("never")) == 0
    assert show(argparse.Namespace(json=False), {"task": "a"}, sentence("the teacher answers {task}")) == 0
    assert capsys.readouterr().out == '{\n "task": "a"\n}\nthe teacher answers a\n'
