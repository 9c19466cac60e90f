import argparse

import pytest

from distiller.command_line import build_parser
from stillroom import COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser(COMMANDS).parse_args([command, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert (COMMANDS[command].__doc__ or "?") in " ".join(shown.split())
    assert "example: " in shown


def test_what_is_parsed_names_its_command() -> None:
    arguments = build_parser(COMMANDS).parse_args(["rollback", "a-task", "--reason", "wrong"])
    assert arguments.command is COMMANDS["rollback"]
    assert vars(arguments) | {"command": None} == vars(
        argparse.Namespace(command=None, config=None, json=False, task="a-task", reason="wrong")
    )
