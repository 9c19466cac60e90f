import shutil
import subprocess
from pathlib import Path

import pytest

from distiller.bundle import Bundle, amend, load_bundle, read_manifest, seal
from proxy.errors import BadInput


def student(folder: Path, weights: bytes = b"weights") -> Path:
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(weights)
    (folder / "card.md").write_text("# Sorts the mail\n")
    return folder


@pytest.fixture
def sealed(tmp_path) -> Bundle:
    return seal(student(tmp_path / "work"), tmp_path / "students", {"task": "mail", "rank": 16})


def test_a_sealed_student_is_found_under_its_id(sealed, tmp_path):
    assert sealed.path == tmp_path / "students" / sealed.id
    assert sealed.id.startswith("student-")
    assert len(sealed.id) == len("student-") + 12
    assert load_bundle(sealed.path) == sealed
    assert sealed.manifest == {"task": "mail", "rank": 16}
    assert not (tmp_path / "work").exists()


def test_standard_tools_can_check_the_sums(sealed):
    checked = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=sealed.path, capture_output=True)
    assert checked.returncode == 0


def test_an_engine_that_runs_as_another_user_can_read_it(tmp_path):
    folder = student(tmp_path / "work")
    (folder / "card.md").chmod(0o600)
    (folder / "adapter").chmod(0o700)
    bundle = seal(folder, tmp_path / "students", {})
    modes = {path.name: path.stat().st_mode & 0o777 for path in bundle.path.rglob("*")}
    assert modes.pop("adapter") == 0o755
    assert set(modes.values()) == {0o644}


def test_the_id_follows_the_content_and_nothing_else(sealed, tmp_path):
    other = seal(student(tmp_path / "elsewhere", b"other"), tmp_path / "students", {})
    same = seal(student(tmp_path / "again"), tmp_path / "second", {"task": "other"})
    assert other.id != sealed.id
    assert same.id == sealed.id


def test_sealing_the_same_again_changes_nothing(sealed, tmp_path):
    assert seal(student(tmp_path / "again"), tmp_path / "students", {"task": "later"}) == sealed
    assert not (tmp_path / "again").exists()


def test_an_interrupted_seal_is_not_a_student_and_can_be_repeated(sealed, tmp_path):
    (sealed.path / "manifest.json").unlink()
    with pytest.raises(BadInput, match=r"manifest\.json is missing"):
        load_bundle(sealed.path)
    (sealed.path / "card.md").unlink()
    assert seal(student(tmp_path / "again"), tmp_path / "students", {"task": "mail", "rank": 16}) == sealed


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("card.md", "# Sorts the post\n", r"card\.md was changed"),
        ("adapter/adapter_model.safetensors", None, r"adapter_model\.safetensors is missing"),
        ("extra.py", "import os", r"extra\.py is not part of it"),
        ("SHA256SUMS", "", "SHA256SUMS was changed"),
        ("SHA256SUMS", None, "SHA256SUMS is missing"),
        ("manifest.json", "{}", r"manifest\.json was changed"),
        ("manifest.json", "{", r"manifest\.json is not readable"),
    ],
)
def test_tampering_is_found_and_the_file_is_named(sealed, name: str, content: str | None, says: str):
    if content is None:
        (sealed.path / name).unlink()
    else:
        (sealed.path / name).write_text(content)
    with pytest.raises(BadInput, match=says):
        load_bundle(sealed.path)


def test_a_manifest_edited_in_place_is_found(sealed):
    path = sealed.path / "manifest.json"
    path.write_text(path.read_text().replace('"rank": 16', '"rank": 32'))
    with pytest.raises(BadInput, match=r"manifest\.json was changed"):
        load_bundle(sealed.path)


def test_a_bundle_that_was_tampered_with_is_not_taken_for_the_same(sealed, tmp_path):
    (sealed.path / "card.md").write_text("changed")
    with pytest.raises(BadInput, match=r"card\.md was changed"):
        seal(student(tmp_path / "again"), tmp_path / "students", {})
    assert (tmp_path / "again" / "card.md").exists()


def test_a_copy_elsewhere_is_the_same_student(sealed, tmp_path):
    shutil.copytree(sealed.path, tmp_path / "copy")
    assert load_bundle(tmp_path / "copy").id == sealed.id


def test_links_and_empty_folders_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="no files"):
        seal(tmp_path / "empty", tmp_path / "students", {})
    folder = student(tmp_path / "linked")
    (folder / "link").symlink_to(folder / "card.md")
    with pytest.raises(BadInput, match="symbolic link"):
        seal(folder, tmp_path / "students", {})


def test_a_file_can_be_amended_and_the_id_still_holds(sealed):
    amend(sealed.path, "card.md", b"# less\n", {"task": "mail", "cut": 1})
    amend(sealed.path, "card.md", b"#\n", {"task": "mail", "cut": 2})
    again = load_bundle(sealed.path)
    assert (again.id, again.manifest) == (sealed.id, {"task": "mail", "cut": 2})
    assert read_manifest(sealed.path) == {"task": "mail", "cut": 2}
    checked = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=sealed.path, capture_output=True)
    assert checked.returncode == 0
    assert not list(sealed.path.glob(".*"))


def test_an_amended_file_cannot_be_tampered_with(sealed):
    amend(sealed.path, "card.md", b"# less\n", {})
    (sealed.path / "card.md").write_text("# more\n")
    with pytest.raises(BadInput, match=r"card\.md was changed"):
        load_bundle(sealed.path)


def test_an_amendment_that_was_interrupted_leaves_a_whole_student(sealed):
    before = (sealed.path / "card.md").read_bytes()
    amend(sealed.path, "card.md", b"# less\n", {})
    (sealed.path / "card.md").write_bytes(before)
    assert load_bundle(sealed.path).id == sealed.id
