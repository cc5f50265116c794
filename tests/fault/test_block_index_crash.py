"""SIGKILL at any step of a search: the index is believed only if it is right."""

from __future__ import annotations

import functools
import json
import os
import re
from pathlib import Path

import pytest

from backends.rsync.journal.block_index import BlockIndexes
from backends.system import index_blocks, index_file
from backends.system.beneath import Beneath
from backends.system.index_blocks import Request
from tests.support.fuse import lives

MIB = 2**20
ONE, TWO = (1, 1), (1, 2)


class World:
    """A file of which the copies as of commit ONE and TWO are at hand."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file = directory / "live/file"
        self.indexes = BlockIndexes(directory / "indexes")

    def search(self, base: tuple[int, int] | None) -> dict[str, object]:
        """Do in this process what the program of its own does; return its answer."""
        request = Request(
            path="file",
            index_path=str(self.indexes.file(b"file")),
            inode=self.file.stat().st_ino,
            base=base,
            also=[],
            data=str(self.directory / "data"),
            anew=base is None,
        )
        found: dict[str, object] = {"sent": []}
        with Beneath(self.file.parent) as tree:
            for line in index_blocks.answer(tree, request):
                found |= json.loads(json.dumps(line))
        return found


def begin(directory: Path, *, sealed: bool) -> None:
    (directory / "live").mkdir()
    (directory / "indexes").mkdir()
    world = World(directory)
    world.file.write_bytes(os.urandom(3 * MIB))
    (directory / "copy-1.1").write_bytes(world.file.read_bytes())
    assert world.search(None)["done"]
    (directory / "data").unlink()
    world.indexes.keep(b"file", ONE)
    if sealed:
        world.indexes.seal()
    write(world.file, 0, 5000, MIB - 1, 2 * MIB)
    (directory / "copy-1.2").write_bytes(world.file.read_bytes())


def write(file: Path, *places: int) -> None:
    with file.open("r+b") as opened:
        for each in places:
            opened.seek(each)
            opened.write(os.urandom(100))


def act(world: World) -> None:
    """Make commit TWO: search, record, keep, and seal as at a last commit."""
    if not world.search(ONE)["done"]:
        raise RuntimeError("the index was not believed")
    (world.directory / "recorded").touch()
    world.indexes.keep(b"file", TWO)
    world.indexes.seal()


def check(directory: Path, base: tuple[int, int]) -> bool:
    """Return whether the index is believed; if so, it must miss nothing."""
    world = World(directory)
    data = directory / "data"
    data.unlink(missing_ok=True)
    write(world.file, 4096, 2 * MIB + 50_000)
    found = world.search(base)
    if not found["done"]:
        return False
    copy = bytearray((directory / f"copy-{base[0]}.{base[1]}").read_bytes())
    with data.open("rb") as content:
        for offset, length in found["sent"]:
            copy[offset : offset + length] = content.read(length)
    assert bytes(copy) == world.file.read_bytes()
    return True


@pytest.mark.parametrize("sealed", [False, True])
def test_a_kill_at_any_step_leaves_no_wrong_index(
    sealed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a seal, also if a start of the machine comes in between."""
    story = ""
    prepare = functools.partial(begin, sealed=sealed)
    for directory, _ in lives(tmp_path, prepare, World, act):
        base = TWO if (directory / "recorded").exists() else ONE
        with monkeypatch.context() as patch:
            if sealed:
                other = "00000000-0000-4000-8000-000000000001"
                patch.setattr(index_file, "boot_id", lambda value=other: value)
            story += "+" if check(directory, base) else "-"
    # At first the old one is believed, from the last steps on the new one.
    assert re.fullmatch(r"\++-{6,}\++", story), story
