"""What a mirror does while etcd is away, comes back, or comes back as another."""

from __future__ import annotations

import shutil
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from backends.system import clock
from plugin.errors import StoreError
from plugin.store.base import Delete, Put
from plugin.store.etcd.store import EtcdStore
from plugin.store.mirror import MirrorStore
from tests.support import etcd
from tests.support.etcd import wait_until
from tests.support.mirrors import WITHIN_S, MirrorBench, keys, put

pytestmark = pytest.mark.xdist_group("etcd")


def test_reads_go_on_without_etcd_and_across_a_restart(mirrors: MirrorBench) -> None:
    mirrors.call_deadline_s = 2.0  # calls that nobody will answer
    mirror = mirrors.ready()
    put(mirror, "ours")
    put(mirrors.etcd(), "theirs")
    mirror.refresh(WITHIN_S)
    assert mirror.fault() is None
    assert mirror.synchronised_age_s() is None
    mirrors.kill()
    assert keys(mirror) == ["ours", "theirs"]
    with pytest.raises(StoreError, match="etcd"):
        mirror.refresh(0.5)
    with pytest.raises(StoreError, match="etcd"):
        put(mirror, "later")
    mirror.close()
    again = mirrors.mirror()
    assert again.filled
    assert keys(again) == ["ours", "theirs"]
    wait_until(lambda: "cannot connect" in (again.fault() or ""), "the fault")
    assert again.synchronised_age_s() is not None
    mirrors.cluster.heal()
    put(mirrors.etcd(), "new")
    wait_until(lambda: keys(again) == ["new", "ours", "theirs"], "the new record")
    assert again.fault() is None


def test_a_mirror_that_never_read_says_so_and_recovers(mirrors: MirrorBench) -> None:
    mirrors.kill()
    mirror = mirrors.mirror()
    assert not mirror.filled
    for read in (
        lambda: mirror.get("a"),
        lambda: mirror.prefix(""),
    ):
        with pytest.raises(StoreError, match="never read from etcd"):
            read()
    assert "never read" in (mirror.fault() or "")
    mirrors.cluster.heal()
    mirror.refresh(WITHIN_S)
    assert mirror.filled
    assert keys(mirror) == []
    mirror.close()
    # Empty is knowledge, too.
    mirrors.kill()
    assert mirrors.mirror().prefix("")[0] == []


@pytest.mark.long
def test_a_frozen_etcd_is_told_and_outlived(mirrors: MirrorBench) -> None:
    mirror = mirrors.ready()
    put(mirror, "a")
    mirrors.cluster.members[0].freeze()
    wait_until(lambda: "not in step" in (mirror.fault() or ""), "the fault")
    assert keys(mirror) == ["a"]
    mirrors.cluster.members[0].thaw()
    mirror.refresh(WITHIN_S)
    wait_until(lambda: mirror.fault() is None, "health")
    put(mirrors.etcd(), "b")
    wait_until(lambda: keys(mirror) == ["a", "b"], "the record")


def test_it_goes_on_after_a_compaction(own_mirrors: MirrorBench) -> None:
    own_mirrors.ready().close()
    other = own_mirrors.etcd()
    for number in range(5):
        last = put(other, "a", b"%d" % number)
    own_mirrors.cluster.ctl("compact", str(last))
    mirror = own_mirrors.mirror()
    wait_until(lambda: mirror.get("a") is not None, "the record")
    assert mirror.get("a") == other.get("a")
    # And a running one, whose watch is cut off while the history goes.
    own_mirrors.kill()
    own_mirrors.cluster.heal()
    last = put(other, "b")
    own_mirrors.cluster.ctl("compact", str(last))
    put(other, "c")
    wait_until(lambda: keys(mirror) == ["a", "b", "c"], "the records")


def test_a_restart_and_a_break_read_only_what_has_changed(
    mirrors: MirrorBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many records it takes seconds to read all, which nobody must wait for."""
    mirror, other = mirrors.ready(), mirrors.etcd()
    for key in ("gone", "kept", "old"):
        last = put(mirror, key, b"before")
    wait_until(lambda: mirror.prefix("")[1] >= last, "the watch")
    mirror.close()
    put(other, "old", b"after")
    other.transact([], [Delete("gone")])
    monkeypatch.setattr(EtcdStore, "prefix", refuse_all)
    mirror = mirrors.mirror()
    mirror.refresh(WITHIN_S)
    assert [(each.key, each.value) for each in mirror.prefix("")[0]] == [
        ("kept", b"before"),
        ("old", b"after"),
    ]
    last = put(mirror, "new")
    wait_until(lambda: mirror.prefix("")[1] >= last, "the watch")
    mirrors.kill()
    wait_until(lambda: not mirror._current, "the break")
    mirrors.cluster.heal()
    put(mirrors.etcd(), "newer")
    mirror.refresh(WITHIN_S)
    assert keys(mirror) == ["kept", "new", "newer", "old"]
    assert mirror.fault() is None


def refuse_all(*_: object, **__: object) -> None:
    raise AssertionError("everything was read")


@pytest.mark.parametrize("heals_at_once", [True, False])
def test_another_cluster_is_noticed(
    own_mirrors: MirrorBench,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    heals_at_once: bool,
) -> None:
    if heals_at_once:  # it is there when the watch is opened again for the first time
        monkeypatch.setattr("plugin.store.etcd.watch._RETRY_PAUSE_S", 4.0)
    mirror = own_mirrors.ready()
    put(mirror, "old")
    (member,) = own_mirrors.cluster.members
    member.kill()
    shutil.rmtree(member.directory / f"{member.name}.data")
    own_mirrors.cluster.heal()
    other = own_mirrors.etcd()
    for number in range(50):  # beyond the revision that the old one had reached
        put(other, "new", b"%d" % number)
    wait_until(lambda: keys(mirror) == ["new"], "the new cluster's records")
    mirror.refresh(WITHIN_S)
    assert mirror.get("new") == other.get("new")
    assert "another cluster" in caplog.text
    mirror.close()
    own_mirrors.kill()
    assert keys(own_mirrors.mirror()) == ["new"]


@pytest.mark.parametrize(
    ("running", "writes"),
    [
        pytest.param(True, 0, id="running, etcd behind"),
        pytest.param(False, 30, id="stopped, etcd ahead"),
        pytest.param(True, 30, id="running, etcd ahead", marks=pytest.mark.long),
        pytest.param(False, 0, id="stopped, etcd behind", marks=pytest.mark.long),
    ],
)
def test_an_old_backup_is_noticed(
    own_mirrors: MirrorBench,
    caplog: pytest.LogCaptureFixture,
    running: bool,
    writes: int,
) -> None:
    mirror = own_mirrors.ready()
    put(mirror, "kept", b"old")
    backup = own_mirrors.directory / "backup.db"
    own_mirrors.cluster.ctl("snapshot", "save", str(backup))
    lost = mirror.transact([], [Put("lost", b""), Put("kept", b"newer")]).revision
    for number in range(10):
        lost = put(mirror, "lost", b"%d" % number)
    if not running:
        mirror.close()
    restore(own_mirrors.cluster, backup)
    other = own_mirrors.etcd()
    for number in range(writes):
        last = put(other, "after", b"%d" % number)
    assert not writes or last > lost
    mirror = mirror if running else own_mirrors.mirror()
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
    mirrors = MirrorBench(etcd_three, tmp_path)
    try:
        mirror = mirrors.ready()
        written = [f"{number}" for number in range(6)]
        for number, member in enumerate(etcd_three.members):
            member.kill()
            key = f"{number * 2}"
            wait_until(partial(written_down, mirror, key), "a write")
            assert mirror.get(key) is not None
            etcd_three.heal()
            put(mirrors.etcd(), f"{number * 2 + 1}")
        wait_until(lambda: keys(mirror) == written, "all records")
        wait_until(lambda: mirror.fault() is None, "health")
    finally:
        mirrors.close()
        etcd_three.heal()


def written_down(mirror: MirrorStore, key: str) -> bool:
    """Try to write *key*, which an election may prevent for a while."""
    with suppress(StoreError):
        return mirror.transact([], [Put(key, b"")]).succeeded
    return False
