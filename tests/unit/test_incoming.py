"""What has come to copies: what is believed, and until when it is known."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import msgspec

from backends.rsync.journal.delta import Header
from backends.rsync.journal.entries import look_at
from backends.system.beneath import Beneath
from plugin.ownership.state import Commit
from plugin.peers.sharing import AHEAD_SEQ
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


def test_a_holder_that_is_asked_has_not_filled_what_another_one_has(
    tmp_path: Path,
) -> None:
    """What came with the commit itself counts, though another node has sent it."""
    incoming, home = Incoming(), tmp_path / "home"
    home.mkdir()
    incoming.note("v", home, Commit(1, AHEAD_SEQ), empty=False, clean=True)
    (home / "filled").write_text("of an older commit")
    incoming.note_all_ahead("v")
    incoming.note("v", home, Commit(1, 5), empty=False)
    (home / "came").write_text("with the commit")
    incoming.pull("v", Commit(1, 5))
    incoming.note("v", home, Commit(1, 5), empty=False)
    header = Header(volume="v", base=None, commit=(1, 5))
    arrivals = incoming.come_for("v", header, None)
    with Beneath(home) as tree:
        for name, is_believed in ((b"filled", False), (b"came", True)):
            known = look_at(tree, name)
            assert known is not None
            entry = msgspec.structs.replace(known.entry, commit=(1, 5))
            assert arrivals.include(entry, known) == is_believed
    incoming.pull("v", Commit(1, 6))
    assert incoming.of("v") is None
