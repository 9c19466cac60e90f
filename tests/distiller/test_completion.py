import shutil
import subprocess
from pathlib import Path

import pytest

from distiller.command_line import SHELLS, build_parser
from distiller.completion import completion_script
from stillroom import COMMANDS, main

# What bash does when Tab is pressed behind these words: it calls the function that `complete -F` named for the command.
PRESS_TAB = """
source "$1"; shift
[[ $(complete -p stillroom) =~ -F\\ ([^ ]+) ]] || exit 9
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
"${BASH_REMATCH[1]}" stillroom "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def script(shell: str, folder: Path) -> Path:
    path = folder / f"stillroom.{shell}"
    path.write_text(completion_script(build_parser(COMMANDS), shell))
    return path


def offered(folder: Path, *words: str) -> set[str]:
    """What bash offers for the last word."""
    program = ["bash", "--norc", "-c", PRESS_TAB, "bash", str(script("bash", folder)), "stillroom", *words]
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_bash_offers_every_command(tmp_path: Path) -> None:
    assert offered(tmp_path, "") >= set(COMMANDS)
    assert offered(tmp_path, "roll") == {"rollback"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("rollback", "a-task", "--re"), {"--reason"}),
        (("keys", "re"), {"revoke"}),
        (("export", "a-task", "--gguf", "q8"), {"q8_0"}),
        (("completion", "z"), {"zsh"}),
        (("verify", "pro"), {"proof.json"}),
        (("status", "--config", "still"), {"still.toml"}),
        (("export", "a-task", "--to", "out"), {"outbox"}),
    ],
)
def test_bash_offers_options_choices_files_and_folders(
    tmp_path: Path, words: tuple[str, ...], expected: set[str]
) -> None:
    for name in ("proof.json", "still.toml", "out.txt"):
        (tmp_path / name).touch()
    (tmp_path / "outbox").mkdir()
    (tmp_path / "stillroom.bash").touch()  # The script itself is a file too, of another beginning than those asked for.
    assert offered(tmp_path, *words) - {"stillroom.bash"} == expected


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_reads_its_script_without_a_word(shell: str, tmp_path: Path) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    quiet = {"bash": ["--norc"], "zsh": ["--no-rcs"], "tcsh": ["-f"]}[shell]
    ready = "autoload -Uz compinit && compinit -u -D && " if shell == "zsh" else ""
    file = script(shell, tmp_path)
    # As its users' start-up files do; a script for zsh that is sourced is taken for the completion itself.
    asked = [program, *quiet, "-c", f'{ready}eval "$(<{file})"' if shell == "zsh" else f"source {file}"]
    done = subprocess.run(asked, cwd=tmp_path, env={"HOME": str(tmp_path)}, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("#compdef stillroom")
