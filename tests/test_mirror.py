import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("proxy", "router", "distiller")
SOURCES = {
    file.relative_to(ROOT)
    for package in PACKAGES
    for file in (ROOT / package).rglob("*.py")
    if file.name != "__init__.py"
} | {Path("stillroom.py")}


def test_every_source_file_has_its_test_file() -> None:
    expected = {Path("tests") / source.with_name(f"test_{source.name}") for source in SOURCES}
    assert {path for path in expected if not (ROOT / path).exists()} == set()


def test_every_test_file_of_a_package_has_its_source_file() -> None:
    tests = {
        file.relative_to(ROOT / "tests") for name in PACKAGES for file in (ROOT / "tests" / name).glob("test_*.py")
    }
    assert len(tests) > len(PACKAGES)
    assert {path for path in tests if path.with_name(path.name.removeprefix("test_")) not in SOURCES} == set()


def test_files_stay_readable() -> None:
    files = [ROOT / source for source in SOURCES] + list((ROOT / "tests").rglob("*.py"))
    lengths = {file.relative_to(ROOT): len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert {path: length for path, length in lengths.items() if length > 400} == {}


def test_nine_functions_of_ten_fit_thirty_lines() -> None:
    trees = [ast.parse((ROOT / source).read_text(encoding="utf-8")) for source in SOURCES]
    lengths = sorted(
        (node.end_lineno or 0) - node.lineno + 1
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    assert lengths[len(lengths) * 9 // 10] <= 30
