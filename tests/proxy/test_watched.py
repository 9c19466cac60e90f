import asyncio
from pathlib import Path

from proxy.watched import Watched


def length(path: Path) -> int:
    return len(path.read_bytes()) if path.exists() else -1


async def until(watched: Watched[int], value: int) -> None:
    while watched.value != value:
        await asyncio.sleep(0.005)


async def test_the_newest_state_is_in_memory_also_when_the_file_goes(tmp_path: Path) -> None:
    file, fresh = tmp_path / "file", tmp_path / "fresh"
    watched = Watched(file, length, 0.01)
    assert watched.value == -1
    async with watched.watching():
        for size in (3, 7, 7, 0):
            fresh.write_bytes(bytes(size))
            fresh.replace(file)
            await until(watched, size)
        file.unlink()
        await until(watched, -1)


async def test_outside_of_the_context_nothing_is_followed(tmp_path: Path) -> None:
    file = tmp_path / "file"
    loads: list[Path] = []
    watched = Watched(file, loads.append, 0.001)
    async with watched.watching():
        pass
    file.touch()
    await asyncio.sleep(0.02)
    assert len(loads) == 1
