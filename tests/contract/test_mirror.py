"""What a mirror shows while others, and many threads of its own, write."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from backends.system import clock
from plugin.errors import StoreError
from plugin.store.base import Compare, Delete, Event, Operation, Put
from plugin.store.etcd.settings import EtcdSettings
from plugin.store.etcd.store import EtcdStore, Snapshot
from plugin.store.mirror import MirrorStore
from plugin.store.mirror_file import MirrorFile
from plugin.store.mirrored import MirroredRecords
from tests.support.chance import seed
from tests.support.etcd import wait_until
from tests.support.mirrors import WITHIN_S, MirrorBench, facts, keys, put

pytestmark = pytest.mark.xdist_group("etcd")
REPOSITORY = Path(__file__).resolve().parents[2]


def test_refresh_sees_puts_and_deletions_of_others(mirrors: MirrorBench) -> None:
    mirror, other = mirrors.ready(), mirrors.etcd()
    for number in range(30):
        put(other, f"k/{number}", b"1")
        mirror.refresh(WITHIN_S)
        record = mirror.get(f"k/{number}")
        assert record == other.get(f"k/{number}")
        if number % 3 == 0:
            other.transact([], [Delete(f"k/{number}"), Put("n", b"")])
            mirror.refresh(WITHIN_S)
            assert mirror.get(f"k/{number}") is None


@pytest.fixture
def late(mirrors: MirrorBench) -> Iterator[MirrorStore]:
    """Yield a mirror that hears nothing of its watch until the test is over."""
    mirror = mirrors.ready()
    follow, gate = mirror._mirrored.follow, threading.Event()

    def wait_and_follow(events: Sequence[Event]) -> None:
        gate.wait(WITHIN_S)
        follow(events)

    mirror._mirrored.follow = wait_and_follow  # type: ignore[method-assign]
    yield mirror
    gate.set()
    last = put(mirrors.etcd(), "last")
    wait_until(lambda: mirror.prefix("")[1] >= last, "the watch")
    assert mirror.prefix("")[0] == mirrors.etcd().prefix("")[0]


def test_refresh_needs_no_watch(mirrors: MirrorBench, late: MirrorStore) -> None:
    other = mirrors.etcd()
    chance = random.Random(1)
    for _ in range(25):
        writer = chance.choice([late, other, other])
        writer.transact([], [change(chance, "k/") for _ in range(2)])
        late.refresh(WITHIN_S)
        assert facts(late) == facts(other)


def test_refresh_is_not_deceived_by_as_many_other_keys(
    mirrors: MirrorBench, late: MirrorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = mirrors.etcd()
    late.transact([], [Put("theirs", b""), Put("ours", b"")])
    other.transact([], [Delete("theirs")])
    changed_since = EtcdStore.changed_since

    def and_we_delete(store: EtcdStore, revision: int, **how: Any) -> Snapshot:
        found = changed_since(store, revision, **how)
        late.transact([], [Delete("ours")])  # one here, as many as there were then
        return found

    monkeypatch.setattr(EtcdStore, "changed_since", and_we_delete)
    late.refresh(WITHIN_S)
    assert keys(late) == []


def test_a_quiet_prefix_does_not_hold_a_refresh_up(mirrors: MirrorBench) -> None:
    mirror = mirrors.ready()
    put(mirror, "a")
    elsewhere = EtcdStore(EtcdSettings(mirrors.cluster.endpoints, prefix="/elsewhere/"))
    last = put(elsewhere, "b")
    elsewhere.close()
    assert mirror.prefix("")[1] < last
    mirror.refresh(WITHIN_S)
    assert keys(mirror) == ["a"]


def test_who_is_refused_sees_why(mirrors: MirrorBench) -> None:
    mirror, other = mirrors.ready(), mirrors.etcd()
    for number in range(20):
        put(other, f"{number}", b"theirs")
        outcome = mirror.transact([Compare(f"{number}", 0)], [Put(f"{number}", b"x")])
        assert not outcome.succeeded
        assert mirror.get(f"{number}").value == b"theirs"  # type: ignore[union-attr]


def test_eight_threads_read_what_they_wrote(mirrors: MirrorBench) -> None:
    """And in the end mirror, file and etcd hold the same, under faults of the watch."""
    mirror, other = mirrors.ready(), mirrors.etcd()
    drawn = seed()
    faults: list[str] = []
    stop = threading.Event()

    def work(number: int) -> None:
        chance = random.Random(drawn + number)
        try:
            for step in range(60):
                act(mirror, chance, own=f"own/{number}/", step=step)
        except (AssertionError, StoreError) as error:
            faults.append(f"{number}: {error!r}")

    def disturb() -> None:
        """Another node, which writes the same shared keys."""
        chance = random.Random(drawn - 1)
        while not stop.is_set():
            other.transact([], [change(chance, "shared/")])
            if chance.random() < 0.2:
                mirror.refresh(WITHIN_S)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    disturber = threading.Thread(target=disturb)
    for thread in [disturber, *threads]:
        thread.start()
    for thread in threads:
        thread.join(WITHIN_S)
    stop.set()
    disturber.join(WITHIN_S)
    assert faults == []
    truth = other.prefix("")[0]
    mirror.refresh(WITHIN_S)
    assert {each.key: each.mod_revision for each in mirror.prefix("")[0]} == {
        each.key: each.mod_revision for each in truth
    }
    last = put(other, "last")
    wait_until(lambda: mirror.prefix("")[1] >= last, "the watch")
    truth = other.prefix("")[0]
    assert mirror.prefix("")[0] == truth
    mirror.close()
    mirrors.kill()
    assert mirrors.mirror().prefix("")[0] == truth


def change(chance: random.Random, prefix: str) -> Operation:
    key = f"{prefix}{chance.randrange(6)}"
    return Delete(key) if chance.random() < 0.4 else Put(key, chance.randbytes(8))


def act(mirror: MirrorStore, chance: random.Random, *, own: str, step: int) -> None:
    """Write keys of our own and shared ones; what only we write must be as written."""
    operations = [change(chance, own) for _ in range(chance.randint(1, 3))]
    operations.append(change(chance, "shared/"))
    outcome = mirror.transact([], operations)
    assert outcome.succeeded
    wanted = {each.key: each for each in operations if each.key.startswith(own)}
    for key, operation in wanted.items():
        record = mirror.get(key)
        if isinstance(operation, Delete):
            assert record is None, f"{key} is back at step {step}"
        else:
            assert record is not None, f"{key} is missing at step {step}"
            assert record.value == operation.value
            assert record.mod_revision == outcome.revision
    shared = mirror.get("shared/0")
    if shared is not None:  # compare and set on what others change
        mirror.transact(
            [Compare(shared.key, shared.mod_revision)], [Put(shared.key, b"seen")]
        )


WRITER = """
import sys
from pathlib import Path
from plugin.store.base import Event, Record
from plugin.store.mirrored import MirroredRecords
mirrored = MirroredRecords(Path(sys.argv[1]))
revision = mirrored.reached
if not revision:
    revision = 1
    mirrored.replace([], revision, cluster="it", asked_at=0)
while True:
    revision += 1
    mirrored.follow([
        Event(f"{number}", revision, Record(f"{number}", b"%d" % revision, 1, revision))
        for number in range(50)
    ])
    print(revision, flush=True)
"""


def test_a_kill_in_the_middle_of_writing_leaves_whole_batches(tmp_path: Path) -> None:
    path = tmp_path / "mirror.db"
    told = 0
    for round_number in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)],
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
        ) as process:
            assert process.stdout is not None
            for _ in range(5 + 3 * round_number):
                told = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            rest = process.stdout.read().split(b"\n")[:-1]
        told = int(rest[-1]) if rest else told
        mirrored = MirroredRecords(path)
        records = mirrored.table.below("")
        mirrored.close()
        assert mirrored.reached >= told  # what was told was durable
        assert len(records) == 50
        assert {each.mod_revision for each in records} == {mirrored.reached}
        assert {each.value for each in records} == {b"%d" % mirrored.reached}


def test_a_file_that_cannot_be_written_is_told_and_made_good(
    mirrors: MirrorBench,
) -> None:
    mirror = mirrors.ready()
    put(mirror, "before")
    file = MirrorFile(mirrors.path)
    file._connection.execute(
        "CREATE TRIGGER full BEFORE INSERT ON records BEGIN SELECT"
        " RAISE(ABORT, 'disk is full'); END"
    )
    put(mirror, "during")
    assert "disk is full" in (mirror.fault() or "")
    assert keys(mirror) == ["before", "during"]
    file._connection.execute("DROP TRIGGER full")
    file.close()
    put(mirror, "after")
    assert mirror.fault() is None
    mirror.close()
    mirrors.kill()
    assert keys(mirrors.mirror()) == ["after", "before", "during"]


def test_a_change_waits_for_no_disk(tmp_path: Path) -> None:
    """A disk that is slow to sync would else delay each Mount by its time."""
    script = tmp_path / "writer.py"
    script.write_text(WRITER.replace("while True", "for _ in range(100)"))
    command = [sys.executable, str(script), str(tmp_path / "mirror.db")]
    calls = tmp_path / "calls"
    trace = ["strace", "-f", "-e", "trace=fsync,fdatasync", "-o", str(calls)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([*trace, *command], check=True, timeout=60, env=environment)
    syncs = calls.read_text().count("sync(")
    # What is left: making the file, its checkpoints, closing it.
    assert syncs < 40


@pytest.mark.long
def test_ten_thousand_records(mirrors: MirrorBench) -> None:
    other = mirrors.etcd()
    for first in range(0, 10_000, 100):
        other.transact([], [Put(f"v/{first + n:05}", b"x" * 400) for n in range(100)])

    def timed(what: str, call: Callable[[], object]) -> None:
        began_s = clock.monotonic_s()
        call()
        print(f"{what}: {(clock.monotonic_s() - began_s) * 1000:.1f} ms")

    mirror = mirrors.mirror()
    timed("first fill from etcd", lambda: mirror.refresh(WITHIN_S))
    timed("list", lambda: mirror.prefix("v/"))
    timed("get", lambda: mirror.get("v/05000"))
    timed("refresh", lambda: mirror.refresh(WITHIN_S))
    put(other, "v/05000", b"y")
    timed("refresh after a put", lambda: mirror.refresh(WITHIN_S))
    other.transact([], [Delete("v/05001")])
    timed("refresh after a deletion", lambda: mirror.refresh(WITHIN_S))
    timed("own write", lambda: put(mirror, "v/05002", b"y"))
    timed("own lost compare", lambda: mirror.transact([Compare("v/05003", 0)], []))
    mirror.close()
    mirrors.kill()
    timed("start without etcd", mirrors.mirror)
    assert len(mirrors.opened[-1].prefix("v/")[0]) == 9_999


def test_who_asks_which_cluster_it_is_makes_etcd_write_nothing(
    mirrors: MirrorBench,
) -> None:
    """Each mirror asks whenever its watch is opened anew, every few quiet seconds."""

    def written() -> int:
        [status] = json.loads(mirrors.cluster.ctl("endpoint", "status", "-w", "json"))
        return int(status["Status"]["raftIndex"])

    store = mirrors.etcd()
    first = store.identity()
    before = written()
    assert {store.identity() for _ in range(5)} == {first}
    assert mirrors.etcd().identity() == first
    assert written() == before
