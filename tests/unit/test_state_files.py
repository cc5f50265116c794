"""What is in the state directory, spoilt: caches heal themselves, truths say it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from backends.base import Volume
from plugin.daemon.node import Node, lock_state
from plugin.errors import StoreError
from plugin.events.log import Events
from plugin.fencing import memory
from plugin.fencing.held import HeldVolume
from plugin.peers.authorization import AUTHORIZED_KEYS, KNOWN_HOSTS, Authorization
from plugin.store.base import Put, Record
from plugin.store.database import UnusableDatabaseError
from plugin.store.mirrored import MirroredRecords
from plugin.store.sqlite import SqliteStore

VOLUME = Volume(id="id", name="data", options={}, created_at="")
# More than a page, so that a file that is cut has lost some of it.
RECORDS = [Record(f"{number:04}", b"x" * 100, 1, 1) for number in range(500)]


def use_mirror(directory: Path) -> str:
    """Keep something in a mirror's file; return what it kept before."""
    with closing(MirroredRecords(directory / "mirror.db")) as mirrored:
        before = "known" if mirrored.table.below("") == RECORDS else ""
        assert before or not mirrored.reached  # all of it is read anew
        mirrored.replace(RECORDS, 7, cluster="it", asked_at=0)
    return before


def use_events(directory: Path) -> str:
    with closing(Events(directory)) as events:
        before = "known" if events.newest("id", 1) else ""
        for _ in range(300):
            events.add(VOLUME, "owned", epoch=1)
    return before


def use_store(directory: Path) -> str:
    with closing(SqliteStore(directory / "store.db")) as store:
        before = "known" if store.get("0001") else ""
        store.transact([], [Put(each.key, each.value) for each in RECORDS])
    return before


def use_node(directory: Path) -> str:
    with closing(Node(directory)) as node:
        before = "known" if node.fact("0001") else ""
        for each in RECORDS:
            node.set_fact(each.key, "x" * 100)
    return before


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "something").touch()


def replace_by_text(path: Path) -> None:
    path.write_bytes(b"no database" * 1000)


def replace_by_another(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("CREATE TABLE other (a); PRAGMA user_version = 1")


def make_newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")


SPOIL = pytest.mark.parametrize(
    "spoil",
    [
        cut,
        empty,
        replace_by_directory,
        replace_by_text,
        replace_by_another,
        make_newer,
    ],
)


@SPOIL
@pytest.mark.parametrize(
    ("name", "use"), [("mirror.db", use_mirror), ("events.db", use_events)]
)
def test_a_cache_begins_anew_and_says_so_once(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    use: Callable[[Path], str],
    spoil: Callable[[Path], None],
) -> None:
    use(tmp_path)
    for _ in range(2):  # what was set aside before is in no way
        spoil(tmp_path / name)
        caplog.clear()
        assert use(tmp_path) == ""
        assert len(caplog.records) == 1
        if spoil is replace_by_directory:
            break
    assert use(tmp_path) == "known"
    assert len(caplog.records) == 1
    assert {each.name for each in tmp_path.iterdir()} == {name, f"{name}.aside"}


@SPOIL
@pytest.mark.parametrize(
    ("name", "use"), [("store.db", use_store), ("node.db", use_node)]
)
def test_a_truth_is_left_alone_and_says_what_to_do(
    tmp_path: Path,
    name: str,
    use: Callable[[Path], str],
    spoil: Callable[[Path], None],
) -> None:
    use(tmp_path)
    path = tmp_path / name
    spoil(path)
    content = None if path.is_dir() else path.read_bytes()[100:]
    for _ in range(2):
        with pytest.raises(UnusableDatabaseError) as refused:
            use(tmp_path)
        assert str(path) in refused.value.cause
        assert refused.value.hint
        assert "\n" not in str(refused.value)
    assert content is None or path.read_bytes()[100:] == content
    path.rename(tmp_path / "aside")
    assert use(tmp_path) == ""


def test_a_database_that_a_crash_left_half_made_is_made_again(tmp_path: Path) -> None:
    (tmp_path / ".store.db.new").write_bytes(b"half")
    (tmp_path / "store.db-wal").write_bytes(b"of another file")
    assert use_store(tmp_path) == ""
    assert use_store(tmp_path) == "known"
    assert [each.name for each in tmp_path.iterdir()] == ["store.db"]


@pytest.mark.parametrize("name", [AUTHORIZED_KEYS, KNOWN_HOSTS])
@pytest.mark.parametrize("spoil", [cut, empty, replace_by_directory, replace_by_text])
def test_what_sshd_reads_is_written_again(
    tmp_path: Path, name: str, spoil: Callable[[Path], None]
) -> None:
    authorization = Authorization(tmp_path, peer_socket=tmp_path / "peer.sock")
    authorization.write([])
    (tmp_path / name).write_bytes(b"a line\n")
    spoil(tmp_path / name)
    authorization.write([])
    assert (tmp_path / name).read_bytes() == b""


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"held', b'{"boot_id": 1}', b"[" * 100_000, b"\xff"]
)
def test_a_guard_that_cannot_read_its_memory_begins_without(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / memory.FILE_NAME).write_bytes(content)
    assert memory.load(str(tmp_path)) == memory.Memory()


def test_a_guard_passes_over_what_is_no_volume(tmp_path: Path) -> None:
    volume = HeldVolume("id", "8:1", "/", "/mnt", 0.0, 1.0, "freeze", "")
    memory.save(str(tmp_path), memory.Memory({"id": volume}))
    path = tmp_path / memory.FILE_NAME
    content = path.read_text()
    assert memory.load(str(tmp_path)).held == {"id": volume}
    path.write_text(content.replace('"held": [{', '"held": ["it", {'))
    assert memory.load(str(tmp_path)) == memory.Memory()
    path.unlink()
    path.mkdir()
    assert memory.load(str(tmp_path)) == memory.Memory()
    memory.save(str(tmp_path), memory.Memory())


def test_a_lock_that_is_no_file_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(StoreError, match="cannot open"):
        lock_state(tmp_path)
