"""What came for a copy that has gone is forgotten, with the descriptor on its disk."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from plugin.ownership.state import Commit
from plugin.replication.incoming import Incoming


def test_a_copy_that_has_gone_keeps_no_descriptor_on_its_disk(tmp_path: Path) -> None:
    incoming = Incoming()

    def note(name: str) -> None:
        (tmp_path / name).mkdir()
        incoming.note(name, tmp_path / name, Commit(1, 1), empty=True)

    def is_open(name: str) -> bool:
        found = []
        for each in Path("/proc/self/fd").iterdir():
            with suppress(FileNotFoundError):  # the one of the listing itself
                found.append(str(each.readlink()))
        return any(f"{tmp_path}/{name}" in each for each in found)

    note("removed")
    assert is_open("removed")
    (tmp_path / "removed").rmdir()
    note("another")
    assert not is_open("removed")
    assert incoming.of("removed") is None
    assert incoming.of("another") is not None
