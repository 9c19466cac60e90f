"""Owns how a shell completes the command line: shtab writes the script, here it learns what of it is a file.

Must not know any command: it walks the parser. shtab is imported only to write a script.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """What a shell reads to complete commands, options, choices, files and folders of this parser."""
    import shtab

    for action in _actions(parser):
        if action.type is Path:
            vars(action)["complete"] = shtab.DIRECTORY if action.metavar == "FOLDER" else shtab.FILE
    return shtab.complete(parser, shell)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All arguments of the parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
