import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"proxy", "router", "distiller", "stillroom", "tests"}
MAY_IMPORT = {
    "proxy": {"proxy"},
    "router": {"router", "proxy"},
    "distiller": {"distiller", "router", "proxy"},
}
HEAVY = ("torch", "transformers", "litellm", "vllm", "sklearn", "duckdb", "spacy", "presidio_analyzer", "py3langid")
LOADED = f"import sys; print(*[name for name in {HEAVY} if name in sys.modules])"
# What `stillroom worker` imports, up to the point where it would take over a socket.
WORKER = """
import contextlib, os, sys, stillroom
os.chdir(sys.argv[1])
import uvicorn
uvicorn.Server.run = lambda *_, **__: None
import socket
with socket.socket() as listener:
    assert stillroom.main(["worker", "--fd", str(os.dup(listener.fileno()))]) == 0
"""


def imported(tree: ast.Module) -> Iterator[str]:
    """Top-level names of everything a module imports, wherever it does so."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            yield (node.module or "").split(".")[0]


def loaded_by(program: str, *arguments: str) -> str:
    command = [sys.executable, "-c", f"{program}\n{LOADED}", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_down(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    wrong = {
        f"{file.name} imports {name}"
        for file in files
        for name in imported(ast.parse(file.read_text(encoding="utf-8")))
        if name in OURS - MAY_IMPORT[package]
    }
    assert files
    assert wrong == set()


def test_the_walk_sees_imports_inside_functions() -> None:
    tree = ast.parse("import a.b\ndef f():\n    from c.d import e\n    import g as h")
    assert set(imported(tree)) == {"a", "c", "g"}


@pytest.mark.parametrize("module", ["proxy.app", "proxy.relay", "router.decide", "stillroom"])
def test_the_hot_path_loads_nothing_heavy(module: str) -> None:
    assert loaded_by(f"import {module}") == ""


def test_a_worker_loads_nothing_heavy(tmp_path: Path) -> None:
    assert loaded_by(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{WORKER}", str(tmp_path)) == ""


def test_help_loads_nothing_heavy() -> None:
    program = "import contextlib, stillroom\nwith contextlib.suppress(SystemExit): stillroom.main(['--help'])"
    usage, _, heavy = loaded_by(program).rpartition("Start with: stillroom demo")
    assert usage.startswith("usage: stillroom")
    assert heavy == ""


def test_it_is_seen_when_something_heavy_is_loaded() -> None:
    assert loaded_by("import proxy.log") == "duckdb"
