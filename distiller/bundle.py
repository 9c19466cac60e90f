"""Owns a student's folder on disk: complete, named by its content. Knows nothing of what the files mean.

It never changes, but for what must not be kept any longer (`amend`): then the manifest says so, and the id stays.

students/student-3fa9.../
    ...              weights, tokenizer, template, lineage, evaluation, whatever was sealed in
    SHA256SUMS       of all of them, as `sha256sum --check` reads it; the student's id is its digest
    SHA256SUMS.sig   a signature of that, where there is one (`distiller.signature`)
    manifest.json    written last: a folder without it was never finished
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxy.errors import BadInput
from proxy.files import put

SUMS = "SHA256SUMS"
MANIFEST = "manifest.json"
SIGNATURE = "SHA256SUMS.sig"


@dataclass(frozen=True, slots=True)
class Bundle:
    """One sealed student: its id, folder, and the manifest as it was given to `seal`."""

    id: str
    path: Path
    manifest: Mapping[str, Any]


def seal(folder: Path, students: Path, manifest: Mapping[str, Any]) -> Bundle:
    """Moves `folder` to `students/<id>/` and finishes it with `manifest`; `folder` is gone afterwards.

    The same files sealed again give the bundle that is already there, with the manifest it has. Raises BadInput for a
    folder with symbolic links or without files, and where the bundle already there was tampered with.
    """
    sums = _sums(folder)
    if not sums:
        raise BadInput(f"{folder} holds no files to seal")
    text = _sums_text(sums)
    identity = _identity(text)
    target = students / identity
    if (target / MANIFEST).exists():
        bundle = load_bundle(target)
        shutil.rmtree(folder)
        return bundle
    if target.exists():  # an earlier seal was interrupted
        shutil.rmtree(target)
    students.mkdir(parents=True, exist_ok=True)
    shutil.move(folder, target)
    (target / SUMS).write_text(text)
    _open_to_all(target)
    (target / MANIFEST).unlink(missing_ok=True)
    _sync(target)
    _write_manifest(target, identity, manifest)
    return load_bundle(target)


def load_bundle(path: Path) -> Bundle:
    """The bundle in `path`, every file checked. Raises BadInput, naming the file, if it is incomplete or changed."""
    for name in (MANIFEST, SUMS):
        if not (path / name).is_file():
            raise BadInput(f"{path} is not a finished student: {name} is missing; distill it again")
    stored, text = _read_manifest(path / MANIFEST), (path / SUMS).read_text()
    amended = stored.get("amended", {})
    listed = _listed(text)
    identity = _identity(_sealed_text(listed, amended))
    if stored["id"] != identity:
        raise BadInput(f"{path / SUMS} was changed: it does not give the id {stored['id']}; restore or distill again")
    found = _sums(path)
    # An amendment that was interrupted has left the file as it was sealed.
    listed |= {name: found[name] for name, digests in amended.items() if found.get(name) in digests.values()}
    for name in sorted(listed.keys() | found.keys()):
        if listed.get(name) != found.get(name):
            what = "is not part of it" if name not in listed else "is missing" if name not in found else "was changed"
            raise BadInput(f"student {identity}: {path / name} {what}; restore the folder or distill again")
    return Bundle(identity, path, stored["manifest"])


def amend(path: Path, name: str, content: bytes, manifest: Mapping[str, Any]) -> None:
    """Replaces one sealed file and the manifest; what the file was sealed as stays on record, so the id still holds.

    The file comes last: whoever finds it as it was, after a crash, does the same again.
    """
    stored, listed = _read_manifest(path / MANIFEST), _listed((path / SUMS).read_text())
    amended = stored.get("amended", {})
    sealed = amended[name]["sealed"] if name in amended else listed[name]
    now = hashlib.sha256(content).hexdigest()
    _write_manifest(path, stored["id"], manifest, amended | {name: {"sealed": sealed, "now": now}})
    put(path / SUMS, _sums_text(listed | {name: now}), 0o644)
    put(path / name, content, 0o644)


def _identity(text: str) -> str:
    return "student-" + hashlib.sha256(text.encode()).hexdigest()[:12]


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest as it was given to `seal` or `amend`, without a look at the files; BadInput if it was changed."""
    return dict(_read_manifest(path / MANIFEST)["manifest"])


def listed(path: Path) -> dict[str, str]:
    """A student's files as they are listed now: relative POSIX path -> SHA-256 (hex)."""
    return _listed((path / SUMS).read_text())


def sealed_sums(path: Path) -> tuple[str, frozenset[str]]:
    """SHA256SUMS as the student in `path` was sealed, and the names of the files that were amended since."""
    amended = _read_manifest(path / MANIFEST).get("amended", {})
    return _sealed_text(_listed((path / SUMS).read_text()), amended), frozenset(amended)


def _sealed_text(listed: Mapping[str, str], amended: Mapping[str, Mapping[str, str]]) -> str:
    return _sums_text({**listed, **{name: digests["sealed"] for name, digests in amended.items()}})


def _sums_text(sums: Mapping[str, str]) -> str:
    return "".join(f"{digest}  {name}\n" for name, digest in sums.items())


def _listed(text: str) -> dict[str, str]:
    return {name: digest for digest, _, name in (line.partition("  ") for line in text.splitlines())}


def _sums(folder: Path) -> dict[str, str]:
    """Relative POSIX path -> SHA-256 (hex) of every file, in order of path, without what is added to a sealed one."""
    sums = {}
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise BadInput(f"{path} is a symbolic link: a student's folder must hold its own files")
        if path.is_file() and name not in (SUMS, MANIFEST, SIGNATURE):
            with path.open("rb") as file:
                sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def _open_to_all(folder: Path) -> None:
    """Lets everyone read: safetensors writes for the owner alone, and the engine may run as another user."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _write_manifest(
    folder: Path, identity: str, manifest: Mapping[str, Any], amended: Mapping[str, Any] | None = None
) -> None:
    """Puts the manifest in place in one step, with a digest of itself since SHA256SUMS cannot list it."""
    body = {"id": identity, "manifest": dict(manifest)} | ({"amended": dict(amended)} if amended else {})
    text = json.dumps(body | {"sha256": _digest(body)}, indent=2, sort_keys=True) + "\n"
    put(folder / MANIFEST, text, 0o644)
    _sync_one(folder.parent)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        body = dict(json.loads(path.read_text()))
    except ValueError:
        raise BadInput(f"{path} is not readable JSON; restore it or distill again") from None
    if body.pop("sha256", None) != _digest(body):
        raise BadInput(f"{path} was changed; restore it or distill again")
    return body


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _sync(folder: Path) -> None:
    """Flushes every file and directory below `folder`, so that a manifest never outlives what it vouches for."""
    for path in folder.rglob("*"):
        _sync_one(path)
    _sync_one(folder)


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
