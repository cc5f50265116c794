"""What a mirror does while etcd is away, comes back, or comes back as another."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from backends.system import clock
from plugin.errors import StoreError
from plugin.store.base import CompactedError, Compare, Delete, Event, Operation, Put
from plugin.store.etcd.settings import EtcdSettings
from plugin.store.etcd.store import EtcdStore, Snapshot
from plugin.store.mirror import MirrorStore
from plugin.store.mirror_file import MirrorFile
from plugin.store.replica import Replica
from tests.support import etcd
from tests.support.etcd import wait_until

pytestmark = pytest.mark.xdist_group("etcd")
WITHIN_S = 60.0
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class Bench:
    """An etcd of one test, and stores on it."""

    cluster: etcd.Cluster
    directory: Path
    prefix: str = field(default_factory=lambda: f"/{uuid.uuid4()}/")
    opened: list[MirrorStore | EtcdStore] = field(default_factory=list)

    @property
    def path(self) -> Path:
        return self.directory / "mirror.db"

    def etcd(self) -> EtcdStore:
        settings = EtcdSettings(
            self.cluster.endpoints,
            prefix=self.prefix,
            call_deadline_s=2.0,
            watch_idle_s=2.0,
        )
        store = EtcdStore(settings)
        self.opened.append(store)
        return store

    def mirror(self) -> MirrorStore:
        store = MirrorStore(self.etcd(), path=self.path)
        self.opened.append(store)
        return store

    def ready(self) -> MirrorStore:
        store = self.mirror()
        store.refresh(WITHIN_S)
        return store

    def kill(self) -> None:
        self.cluster.members[0].kill()

    def close(self) -> None:
        for store in reversed(self.opened):
            store.close()


@pytest.fixture
def bench(etcd_single: etcd.Cluster, tmp_path: Path) -> Iterator[Bench]:
    """Yield a bench on the etcd that other tests use too."""
    etcd_single.heal()
    made = Bench(etcd_single, tmp_path)
    yield made
    made.close()
    etcd_single.heal()


@pytest.fixture
def own_bench(tmp_path: Path) -> Iterator[Bench]:
    """Yield a bench on an etcd of its own, whose data may be spoilt."""
    directory = etcd.memory_directory(tmp_path / "etcd")
    with etcd.single(directory) as cluster:
        made = Bench(cluster, tmp_path)
        yield made
        made.close()


def put(store: MirrorStore | EtcdStore, key: str, value: bytes = b"") -> int:
    outcome = store.transact([], [Put(key, value)])
    assert outcome.succeeded
    return outcome.revision


def keys(store: MirrorStore | EtcdStore) -> list[str]:
    return [each.key for each in store.prefix("")[0]]


def facts(store: MirrorStore | EtcdStore) -> list[tuple[str, bytes, int]]:
    return [(each.key, each.value, each.mod_revision) for each in store.prefix("")[0]]


def test_reads_go_on_without_etcd_and_across_a_restart(bench: Bench) -> None:
    mirror = bench.ready()
    put(mirror, "ours")
    put(bench.etcd(), "theirs")
    mirror.refresh(WITHIN_S)
    assert mirror.fault() is None
    assert mirror.synchronised_age_s() is None
    bench.kill()
    assert keys(mirror) == ["ours", "theirs"]
    with pytest.raises(StoreError, match="etcd"):
        mirror.refresh(0.5)
    with pytest.raises(StoreError, match="etcd"):
        put(mirror, "later")
    mirror.close()
    again = bench.mirror()
    assert again.filled
    assert keys(again) == ["ours", "theirs"]
    wait_until(lambda: "cannot connect" in (again.fault() or ""), "the fault")
    assert again.synchronised_age_s() is not None
    watch = again.watch("", after_revision=again.prefix("")[1])
    bench.cluster.heal()
    put(bench.etcd(), "new")
    wait_until(lambda: keys(again) == ["new", "ours", "theirs"], "the new record")
    assert again.fault() is None
    # Told, or told that it is not, if the record was there before all was read again.
    with suppress(CompactedError):
        assert [each.key for each in watch.next(WITHIN_S)] == ["new"]


def test_a_mirror_that_never_read_says_so_and_recovers(bench: Bench) -> None:
    bench.kill()
    mirror = bench.mirror()
    assert not mirror.filled
    for read in (
        lambda: mirror.get("a"),
        lambda: mirror.prefix(""),
        lambda: mirror.watch("", after_revision=0),
    ):
        with pytest.raises(StoreError, match="never read from etcd"):
            read()
    assert "never read" in (mirror.fault() or "")
    bench.cluster.heal()
    mirror.refresh(WITHIN_S)
    assert mirror.filled
    assert keys(mirror) == []
    mirror.close()
    # Empty is knowledge, too.
    bench.kill()
    assert bench.mirror().prefix("")[0] == []


def test_refresh_sees_puts_and_deletions_of_others(bench: Bench) -> None:
    mirror, other = bench.ready(), bench.etcd()
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
def late(bench: Bench) -> Iterator[MirrorStore]:
    """Yield a mirror that hears nothing of its watch until the test is over."""
    mirror = bench.ready()
    follow, gate = mirror._replica.follow, threading.Event()

    def wait_and_follow(events: Sequence[Event]) -> None:
        gate.wait(WITHIN_S)
        follow(events)

    mirror._replica.follow = wait_and_follow  # type: ignore[method-assign]
    yield mirror
    gate.set()
    last = put(bench.etcd(), "last")
    wait_until(lambda: mirror.prefix("")[1] >= last, "the watch")
    assert mirror.prefix("")[0] == bench.etcd().prefix("")[0]


def test_refresh_needs_no_watch(bench: Bench, late: MirrorStore) -> None:
    other = bench.etcd()
    chance = random.Random(1)
    for _ in range(60):
        writer = chance.choice([late, other, other])
        writer.transact([], [change(chance, "k/") for _ in range(2)])
        late.refresh(WITHIN_S)
        assert facts(late) == facts(other)


def test_refresh_is_not_deceived_by_as_many_other_keys(
    bench: Bench, late: MirrorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = bench.etcd()
    late.transact([], [Put("theirs", b""), Put("ours", b"")])
    other.transact([], [Delete("theirs")])
    changed_since = EtcdStore.changed_since

    def and_we_delete(
        store: EtcdStore, revision: int, *, deadline_s: float
    ) -> Snapshot:
        found = changed_since(store, revision, deadline_s=deadline_s)
        late.transact([], [Delete("ours")])  # one here, as many as there were then
        return found

    monkeypatch.setattr(EtcdStore, "changed_since", and_we_delete)
    late.refresh(WITHIN_S)
    assert keys(late) == []


def test_a_quiet_prefix_does_not_hold_a_refresh_up(bench: Bench) -> None:
    mirror = bench.ready()
    put(mirror, "a")
    elsewhere = EtcdStore(EtcdSettings(bench.cluster.endpoints, prefix="/elsewhere/"))
    last = put(elsewhere, "b")
    elsewhere.close()
    assert mirror.prefix("")[1] < last
    mirror.refresh(WITHIN_S)
    assert keys(mirror) == ["a"]


def test_who_is_refused_sees_why(bench: Bench) -> None:
    mirror, other = bench.ready(), bench.etcd()
    for number in range(20):
        put(other, f"{number}", b"theirs")
        outcome = mirror.transact([Compare(f"{number}", 0)], [Put(f"{number}", b"x")])
        assert not outcome.succeeded
        assert mirror.get(f"{number}").value == b"theirs"  # type: ignore[union-attr]


def test_watches_share_one_stream_and_tell_each_change_once(bench: Bench) -> None:
    mirror, other = bench.ready(), bench.etcd()
    start = mirror.prefix("")[1]
    threads = threading.active_count()
    watches = [mirror.watch(f"{n % 2}/", after_revision=start) for n in range(10)]
    assert threading.active_count() == threads
    wanted: list[list[bytes]] = [[], []]
    for number in range(40):
        put((mirror, other)[number % 2], f"{number // 2 % 2}/k", b"%d" % number)
        wanted[number // 2 % 2].append(b"%d" % number)
    for number, watch in enumerate(watches):
        seen: list[bytes] = []
        deadline = clock.Deadline(WITHIN_S)
        while len(seen) < 20 and not deadline.passed():
            seen += [each.record.value for each in watch.next(1) if each.record]
        assert seen == wanted[number % 2]
        assert watch.next(0) == []


def test_it_goes_on_after_a_compaction(bench: Bench, own_bench: Bench) -> None:
    own_bench.ready().close()
    other = own_bench.etcd()
    for number in range(5):
        last = put(other, "a", b"%d" % number)
    own_bench.cluster.ctl("compact", str(last))
    mirror = own_bench.mirror()
    wait_until(lambda: mirror.get("a") is not None, "the record")
    assert mirror.get("a") == other.get("a")
    # And a running one, whose watch is cut off while the history goes.
    own_bench.cluster.members[0].freeze()
    own_bench.cluster.members[0].thaw()
    own_bench.kill()
    own_bench.cluster.heal()
    last = put(other, "b")
    own_bench.cluster.ctl("compact", str(last))
    put(other, "c")
    wait_until(lambda: keys(mirror) == ["a", "b", "c"], "the records")


def test_another_cluster_is_noticed(
    own_bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = own_bench.ready()
    put(mirror, "old")
    watch = mirror.watch("", after_revision=mirror.prefix("")[1])
    (member,) = own_bench.cluster.members
    member.kill()
    shutil.rmtree(member.directory / f"{member.name}.data")
    own_bench.cluster.heal()
    other = own_bench.etcd()
    for number in range(50):  # beyond the revision that the old one had reached
        put(other, "new", b"%d" % number)
    wait_until(lambda: keys(mirror) == ["new"], "the new cluster's records")
    mirror.refresh(WITHIN_S)
    assert mirror.get("new") == other.get("new")
    assert "another cluster" in caplog.text
    with pytest.raises(CompactedError):
        for _ in range(100):
            watch.next(0.1)
    mirror.close()
    own_bench.kill()
    assert keys(own_bench.mirror()) == ["new"]


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
@pytest.mark.parametrize("writes", [0, 30], ids=["behind", "ahead"])
def test_an_old_backup_is_noticed(
    own_bench: Bench,
    caplog: pytest.LogCaptureFixture,
    running: bool,
    writes: int,
) -> None:
    mirror = own_bench.ready()
    put(mirror, "kept", b"old")
    backup = own_bench.directory / "backup.db"
    own_bench.cluster.ctl("snapshot", "save", str(backup))
    lost = mirror.transact([], [Put("lost", b""), Put("kept", b"newer")]).revision
    for number in range(10):
        lost = put(mirror, "lost", b"%d" % number)
    if not running:
        mirror.close()
    restore(own_bench.cluster, backup)
    other = own_bench.etcd()
    for number in range(writes):
        last = put(other, "after", b"%d" % number)
    assert not writes or last > lost
    mirror = mirror if running else own_bench.mirror()
    wait_until(lambda: keys(mirror) == keys(other), "the old records")
    assert mirror.get("kept") == other.get("kept")
    assert mirror.get("kept").value == b"old"  # type: ignore[union-attr]
    put(mirror, "kept", b"new")
    assert mirror.get("kept").value == b"new"  # type: ignore[union-attr]
    wait_until(lambda: mirror.get("kept") == other.get("kept"), "the same record")
    if not writes:
        assert "went back" in caplog.text


def restore(cluster: etcd.Cluster, backup: Path) -> None:
    """Replace the data of *cluster* by its backup, as its operator does."""
    (member,) = cluster.members
    member.kill()
    data = member.directory / f"{member.name}.data"
    shutil.rmtree(data)
    cluster.ctl(
        *("snapshot", "restore", str(backup), "--data-dir", str(data)),
        *("--name", member.name, "--initial-cluster", member.peer),
        *("--initial-advertise-peer-urls", f"http://{member.address}:2380"),
    )
    # Long enough for every mirror to have missed it.
    clock.pause(1.5)
    cluster.heal()


def test_members_that_die_are_not_missed(
    etcd_three: etcd.Cluster, tmp_path: Path
) -> None:
    etcd_three.heal()
    bench = Bench(etcd_three, tmp_path)
    try:
        mirror = bench.ready()
        written = [f"{number}" for number in range(6)]
        for number, member in enumerate(etcd_three.members):
            member.kill()
            key = f"{number * 2}"
            wait_until(partial(written_down, mirror, key), "a write")
            assert mirror.get(key) is not None
            etcd_three.heal()
            put(bench.etcd(), f"{number * 2 + 1}")
        wait_until(lambda: keys(mirror) == written, "all records")
        wait_until(lambda: mirror.fault() is None, "health")
    finally:
        bench.close()
        etcd_three.heal()


def written_down(mirror: MirrorStore, key: str) -> bool:
    """Try to write *key*, which an election may prevent for a while."""
    with suppress(StoreError):
        return mirror.transact([], [Put(key, b"")]).succeeded
    return False


def test_eight_threads_read_what_they_wrote(bench: Bench) -> None:
    """And in the end mirror, file and etcd hold the same, under faults of the watch."""
    mirror, other = bench.ready(), bench.etcd()
    seed = random.randrange(2**32)
    print("seed", seed)
    faults: list[str] = []
    stop = threading.Event()

    def work(number: int) -> None:
        chance = random.Random(seed + number)
        try:
            for step in range(60):
                act(mirror, chance, own=f"own/{number}/", step=step)
        except (AssertionError, StoreError) as error:
            faults.append(f"{number}: {error!r}")

    def disturb() -> None:
        """Another node, which writes the same shared keys."""
        chance = random.Random(seed - 1)
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
    bench.kill()
    assert bench.mirror().prefix("")[0] == truth


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
from plugin.store.replica import Replica
replica = Replica(Path(sys.argv[1]))
revision = replica.reached
if not revision:
    revision = 1
    replica.replace([], revision, cluster="it", asked_at=0)
while True:
    revision += 1
    replica.follow([
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
        replica = Replica(path)
        records = replica.table.below("")
        replica.close()
        assert replica.reached >= told  # what was told was durable
        assert len(records) == 50
        assert {each.mod_revision for each in records} == {replica.reached}
        assert {each.value for each in records} == {b"%d" % replica.reached}


def test_a_file_that_cannot_be_written_is_told_and_made_good(bench: Bench) -> None:
    mirror = bench.ready()
    put(mirror, "before")
    file = MirrorFile(bench.path)
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
    bench.kill()
    assert keys(bench.mirror()) == ["after", "before", "during"]


def test_ten_thousand_records(bench: Bench) -> None:
    other = bench.etcd()
    for first in range(0, 10_000, 100):
        other.transact([], [Put(f"v/{first + n:05}", b"x" * 400) for n in range(100)])

    def timed(what: str, call: Callable[[], object]) -> None:
        began_s = clock.monotonic_s()
        call()
        print(f"{what}: {(clock.monotonic_s() - began_s) * 1000:.1f} ms")

    mirror = bench.mirror()
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
    bench.kill()
    timed("start without etcd", bench.mirror)
    assert len(bench.opened[-1].prefix("v/")[0]) == 9_999
