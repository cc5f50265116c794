"""
What becomes of writers when their node loses its lease, its daemon or etcd.

A writer must not write later than 1 s after the lease is over, whoever else is dead by
then; and it must run on where nobody has come in between.
"""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import Callable

import pytest

from plugin.ownership.heads import Lock, drop_head, drop_lock, put_head, put_lock
from plugin.ownership.state import Commit
from plugin.store.base import Put
from tests.protocol.node import wait_until
from tests.support.etcd import Cluster
from tests.support.link import Link
from tests.support.owners import (
    FENCED_WITHIN_S,
    MARGIN_S,
    TTL_S,
    WAIT_S,
    Owner,
    Records,
    Writer,
    now_s,
    timed_call,
)

Make = Callable[..., Owner]
NAME = "db"
STRANGER = str(uuid.uuid4())


def start_writer(
    owner: Owner, *, name: str = NAME, **options: str
) -> tuple[str, Writer]:
    """Return the id of a new volume, mounted and written to."""
    volume_id = owner.create(name, **options)
    return volume_id, Writer(owner, owner.mount(name))


def wait_lock_gone(records: Records, volume_id: str) -> None:
    wait_until(
        lambda: records.heads.read(volume_id).lock is None,
        "etcd ends the lease",
        timeout_s=WAIT_S,
    )


def take_over(records: Records, volume_id: str) -> int:
    """Let a stranger own the volume; return its epoch."""
    lease = records.store.grant_lease(60)
    epoch = records.head(volume_id).epoch + 1
    records.change(
        volume_id,
        put_lock(volume_id, Lock(STRANGER, epoch), lease=lease),
        owner=STRANGER,
        epoch=epoch,
        phase="recovering",
    )
    return epoch


def content(owner: Owner, volume_id: str) -> bytes:
    return (owner.copy(volume_id) / "live/stamps").read_bytes()


def test_a_daemon_that_is_soon_back_goes_on_with_all_it_had(
    make_owner: Make, records: Records
) -> None:
    owner = make_owner("alpha", lease_ttl_s=30)
    volume_id, writer = start_writer(owner)
    before = records.heads.read(volume_id)
    owner.kill()
    writer.wait_writing()
    owner.start()
    owner.wait_member()
    after = records.heads.read(volume_id)
    assert (after.lock_lease, after.lock) == (before.lock_lease, before.lock)
    assert after.head == before.head
    writer.wait_writing()
    assert " stops " not in owner.guard_log()
    # Its last Unmount is understood as that of the mount before.
    writer.end()
    owner.unmount(NAME)
    assert owner.mounts() == []
    assert records.head(volume_id).phase == "idle"


def test_a_dead_daemon_freezes_its_writers_in_time_and_regains_the_volume(
    make_owner: Make, records: Records
) -> None:
    owner = make_owner("alpha")
    volume_id, writer = start_writer(owner)
    before = records.head(volume_id)
    owner.kill()
    killed_s = now_s()
    last_s = writer.wait_still()
    # The last keepalive was sent before the daemon was killed.
    assert last_s <= killed_s + TTL_S - MARGIN_S + FENCED_WITHIN_S
    wait_lock_gone(records, volume_id)
    assert writer.stamps()[-1] == last_s
    owner.start()
    writer.wait_writing()
    state = records.heads.read(volume_id)
    assert state.head == before
    assert state.lock == Lock(owner.id, before.epoch)
    assert [each["epoch"] for each in owner.events("owned", NAME)] == [before.epoch]


def test_records_that_have_gone_freeze_writers_and_do_not_end_them(
    make_owner: Make, records: Records
) -> None:
    """Nobody else is the owner; when they are loaded again, the writers go on."""
    owner = make_owner("alpha")
    volume_id, writer = start_writer(owner)
    head = records.head(volume_id)
    records.store.transact([], [drop_lock(volume_id), drop_head(volume_id)])
    writer.wait_still()
    records.store.transact([], [put_head(volume_id, head)])
    writer.wait_writing()
    assert records.heads.read(volume_id).lock == Lock(owner.id, head.epoch)
    assert not owner.logged("writers-killed")


def test_a_daemon_that_knows_nothing_yet_leaves_the_guard_what_it_knows(
    make_owner: Make, server: Cluster, records: Records
) -> None:
    """The mirror is lost, and etcd away: which volumes are mounted is not known."""
    owner = make_owner("alpha", failsafe=False)
    volume_id, writer = start_writer(owner)
    before = records.head(volume_id)
    owner.kill()
    for path in owner.state_dir.glob("mirror.db*"):
        path.unlink()
    server.members[0].freeze()
    owner.launch()
    writer.wait_still()
    server.members[0].thaw()
    owner.wait_ready()
    writer.wait_writing()
    assert records.head(volume_id) == before
    assert records.heads.read(volume_id).lock == Lock(owner.id, before.epoch)


def test_a_record_that_cannot_be_read_leaves_no_writer_unguarded(
    make_owner: Make, server: Cluster, records: Records
) -> None:
    owner = make_owner("alpha", failsafe=False)
    _, writer = start_writer(owner)
    owner.kill()
    key = f"volumes/{NAME}"
    record = records.store.get(key)
    assert record is not None
    records.store.transact([], [Put(key, b"{")])
    owner.start()
    writer.wait_writing()
    server.members[0].freeze()
    writer.wait_still()
    server.members[0].thaw()
    records.store.transact([], [Put(key, record.value)])
    writer.wait_writing()


def test_a_head_that_cannot_be_read_ends_no_writer_while_the_lease_goes_on(
    make_owner: Make, records: Records
) -> None:
    owner = make_owner("alpha", failsafe=False, lease_ttl_s=30)
    volume_id, writer = start_writer(owner)
    owner.kill()
    key = f"v/{volume_id}/head"
    head = records.store.get(key)
    assert head is not None
    records.store.transact([], [Put(key, b"{")])
    owner.start()
    owner.wait_member()
    writer.wait_writing()
    assert " stops " not in owner.guard_log()
    records.store.transact([], [Put(key, head.value)])
    writer.end()
    owner.unmount(NAME)
    assert records.head(volume_id).phase == "idle"


def test_a_volume_taken_while_its_daemon_was_dead_is_lost_with_its_tail_kept(
    make_owner: Make, records: Records
) -> None:
    owner = make_owner("alpha")
    volume_id, writer = start_writer(owner)
    owner.kill()
    writer.wait_still()
    wait_lock_gone(records, volume_id)
    take_over(records, volume_id)
    before = content(owner, volume_id)
    owner.start()
    writer.wait_killed()
    assert content(owner, volume_id) == before
    # The engine has seen its container end.
    owner.unmount(NAME)
    assert owner.mounts() == []
    replica = owner.replica(volume_id)
    assert (replica.live_epoch, replica.commit) == (0, Commit(1, 1))
    assert records.head(volume_id).owner == STRANGER
    assert content(owner, volume_id) == before


def test_a_volume_taken_from_a_living_daemon_is_lost_with_its_tail_kept(
    make_owner: Make, records: Records
) -> None:
    owner = make_owner("alpha")
    volume_id, writer = start_writer(owner)
    other_id, other = start_writer(owner, name="other")
    take_over(records, volume_id)
    writer.wait_killed()
    before = content(owner, volume_id)
    refused = owner.refused("Mount", Name=NAME, ID="two")
    assert "is in use on node" in refused or "another node has taken it" in refused
    owner.unmount(NAME)
    assert owner.replica(volume_id).commit == Commit(1, 1)
    assert content(owner, volume_id) == before
    # What nobody has taken is not touched.
    other.wait_writing()
    assert f"{other_id}: stops" not in owner.guard_log()


def test_without_etcd_a_sole_member_goes_on(
    make_owner: Make, server: Cluster, records: Records
) -> None:
    owner = make_owner("alpha", failsafe=True, tuning={})
    owner.create("idle")
    volume_id, writer = start_writer(owner)
    before = records.head(volume_id)
    server.members[0].freeze()
    end_s = now_s() + TTL_S + 2.0
    while now_s() < end_s:
        time.sleep(1.0)
        writer.wait_writing()
    assert " stops " not in owner.guard_log()
    # Long after its lease: what is shared on the node needs nobody's word.
    owner.mount(NAME, "two")
    assert "etcd" in owner.refused("Mount", Name="idle", ID="one")
    server.members[0].thaw()
    owner.wait_member()
    wait_until(
        lambda: records.heads.read(volume_id).lock == Lock(owner.id, before.epoch),
        "the lock is taken again",
        timeout_s=WAIT_S,
    )
    writer.wait_writing()
    assert records.head(volume_id) == before
    assert " stops " not in owner.guard_log()


def test_without_etcd_and_failsafe_writers_freeze_and_go_on_afterwards(
    make_owner: Make, server: Cluster, records: Records
) -> None:
    owner = make_owner("alpha", failsafe=False)
    volume_id, writer = start_writer(owner)
    before = records.head(volume_id)
    server.members[0].freeze()
    frozen_s = now_s()
    last_s = writer.wait_still()
    assert last_s <= frozen_s + TTL_S - MARGIN_S + FENCED_WITHIN_S
    assert last_s > frozen_s, "it was stopped before its time"
    server.members[0].thaw()
    writer.wait_writing()
    assert records.head(volume_id) == before
    [lost] = owner.events("lost", NAME)
    assert last_s <= lost["lease_deadline_s"] + FENCED_WITHIN_S
    wait_until(lambda: owner.events("regained", NAME), "it says so")


@pytest.mark.long
def test_a_frozen_writer_is_killed_in_the_end(
    make_owner: Make, server: Cluster
) -> None:
    owner = make_owner("alpha", failsafe=False, freeze_max_s=2)
    volume_id, writer = start_writer(owner)
    server.members[0].freeze()
    writer.wait_killed()
    assert "frozen too long" in owner.guard_log()
    before = content(owner, volume_id)
    # Docker sees it end and unmounts, whatever is down.
    took_s, error = timed_call(owner, "Unmount", Name=NAME, ID="one")
    assert error == ""
    assert took_s < 10
    assert owner.mounts() == []
    assert content(owner, volume_id) == before


def test_a_member_that_is_silent_freezes_writers(
    make_owner: Make, server: Cluster, records: Records
) -> None:
    owner, member = make_owner("alpha"), make_owner("beta")
    volume_id, writer = start_writer(owner)
    records.change(volume_id, members=(owner.id, member.id))
    member.kill()
    server.members[0].freeze()
    frozen_s = now_s()
    last_s = writer.wait_still()
    assert frozen_s < last_s <= frozen_s + TTL_S - MARGIN_S + FENCED_WITHIN_S
    assert owner.logged("does not agree that we go on without etcd")
    server.members[0].thaw()
    writer.wait_writing()


@pytest.mark.long
def test_a_member_keeps_only_those_writers_going_whose_owner_it_knows(
    make_owner: Make, server: Cluster, records: Records, link: Link
) -> None:
    owner, member = make_owner("alpha"), make_owner("beta", link=link)
    ids = {}
    for name in ("known", "unknown"):
        ids[name] = owner.create(name)
        owner.mount(name)
        owner.unmount(name)
        records.change(ids[name], members=(owner.id, member.id))
    known = Writer(owner, owner.mount("known"))
    member.wait_known("known", epoch=2, ownership="owned")
    # What follows the member does not hear any more.
    link.cut()
    unknown = Writer(owner, owner.mount("unknown"))
    server.members[0].freeze()
    frozen_s = now_s()
    last_s = unknown.wait_still()
    assert frozen_s < last_s <= frozen_s + TTL_S - MARGIN_S + FENCED_WITHIN_S
    while now_s() < frozen_s + TTL_S + 2.0:
        time.sleep(1.0)
        known.wait_writing()
    assert f"{ids['known']}: stops" not in owner.guard_log()
    assert unknown.stamps()[-1] == last_s
    server.members[0].thaw()
    unknown.wait_writing()


def test_everything_but_mount_answers_without_etcd(
    make_owner: Make, server: Cluster, records: Records
) -> None:
    owner = make_owner("alpha")
    volume_id = owner.create(NAME)
    owner.mount(NAME)
    server.members[0].kill()
    times: dict[str, list[float]] = {}
    for _ in range(200):
        for operation, body in (
            ("List", {}),
            ("Get", {"Name": NAME}),
            ("Path", {"Name": NAME}),
        ):
            took_s, error = timed_call(owner, operation, **body)
            assert error == ""
            times.setdefault(operation, []).append(took_s)
    for operation, each in times.items():
        p50, p99 = statistics.median(each), sorted(each)[-3]
        print(f"{operation}: p50 {p50 * 1000:.2f} ms, p99 {p99 * 1000:.2f} ms")
        assert p99 < 1.0
    took_s, error = timed_call(owner, "Unmount", Name=NAME, ID="one")
    assert error == ""
    assert took_s < 10
    assert owner.mounts() == []
    assert owner.replica(volume_id).live_epoch == 0
    assert owner.logged("it is released when the cluster answers")
    server.heal()
    wait_until(
        lambda: records.head(volume_id).phase == "idle",
        "the reconciler releases it",
        timeout_s=WAIT_S,
    )
    head = records.head(volume_id)
    assert (head.epoch, head.committed) == (1, Commit(1, 1))
    assert records.heads.read(volume_id).lock is None
