"""Members of a cluster on a real etcd that is stopped, and that takes leases away."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from backends.system import clock
from plugin.errors import NodeConflictError, StoreError
from plugin.membership.lease import LEASE_MARGIN_S
from plugin.membership.membership import Membership
from plugin.store.base import Put
from tests.support import etcd
from tests.support.etcd import wait_until
from tests.support.members import Members

from .conftest import TTL_S

pytestmark = pytest.mark.xdist_group("etcd-members")
REPOSITORY = Path(__file__).resolve().parents[2]


def may_act(member: Membership) -> bool:
    return clock.boottime_s() < member.deadline_s()


def states(member: Membership) -> dict[str, str]:
    return {each.record.name: each.state for each in member.directory.all()}


def test_nodes_see_each_other_come_and_go(members: Members) -> None:
    alpha = members.started("alpha")
    beta = members.started("beta")
    both = {"alpha": "ready", "beta": "ready"}
    wait_until(lambda: states(alpha) == states(beta) == both, "both nodes")
    alpha.directory.set_drained("beta", drained=True)
    wait_until(lambda: beta.drained, "the mark")
    members.crash(beta)
    # Nobody renews its lease: it is down when that ends, not before.
    wait_until(lambda: states(alpha)["beta"] == "down", "the end of its lease")
    alpha.remove("beta")
    assert states(alpha) == {"alpha": "ready"}
    with pytest.raises(NodeConflictError, match="the node name 'alpha' belongs to"):
        members.started("alpha")


def test_two_that_want_one_name_at_once(members: Members) -> None:
    """Whatever they read before, one transaction decides."""
    outcomes: list[object] = []

    def start() -> None:
        try:
            outcomes.append(members.started("alpha"))
        except NodeConflictError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    joined = [each for each in outcomes if isinstance(each, Membership)]
    # Who was beaten between reading and writing finds the conflict with its next try.
    wait_until(lambda: sum(each.fault() is None for each in joined) == 1, "one owner")
    wait_until(
        lambda: all(
            each.fault() is None or "belongs to node" in str(each.fault())
            for each in joined
        ),
        "the others' conflicts",
    )
    assert sum(each.lease != 0 for each in joined) == 1
    members.store.refresh(10)
    assert len(members.store.prefix("nodes/")[0]) == 1
    assert len(members.store.prefix("alive/")[0]) == 1


def test_a_restart_keeps_what_hangs_on_the_lease(members: Members) -> None:
    alpha = members.started("alpha")
    lease = alpha.lease
    members.store.transact([], [Put("lock", b"alpha's", lease)])
    again = members.restarted(alpha)
    assert again.fault() is None
    assert again.lease == lease
    assert may_act(again)
    # It is renewed now by the new daemon: it outlives its time.
    lives_s = clock.boottime_s() + TTL_S + 1
    wait_until(lambda: clock.boottime_s() > lives_s, "the old end")
    members.store.refresh(10)
    assert members.store.get("lock") is not None
    assert states(again) == {"alpha": "ready"}


def test_after_a_reboot_the_old_lease_ends_first(members: Members) -> None:
    alpha = members.started("alpha")
    members.store.transact([], [Put("lock", b"the last boot's", alpha.lease)])
    members.crash(alpha)
    booted = members.copied(alpha, boot_id="the next boot")
    booted.start()
    assert booted.lease == 0
    assert "last boot has not ended yet" in str(booted.fault())
    wait_until(lambda: booted.fault() is None, "the new lease")
    assert booted.lease not in (0, alpha.lease)
    members.store.refresh(10)
    assert members.store.get("lock") is None


def test_a_copied_disk_takes_nothing_from_its_origin(members: Members) -> None:
    alpha = members.started("alpha")
    beta = members.started("beta")
    heard = members.listen(alpha)
    for changes in ({"machine_id": "another"}, {"boot_id": "another"}):
        clone = members.copied(alpha, **changes)
        if "machine_id" in changes:
            with pytest.raises(NodeConflictError, match="running on another machine"):
                clone.start()
        else:
            clone.start()
        assert (clone.lease, clone.deadline_s()) == (0, -math.inf)
    heard.clear()
    assert heard.wait(60)
    assert alpha.fault() is None
    assert states(beta)["alpha"] == "ready"


def test_while_etcd_is_frozen_nobody_may_act(
    members: Members, server: etcd.Cluster
) -> None:
    alpha = members.started("alpha")
    lease, heard = alpha.lease, members.listen(alpha)
    assert may_act(alpha)
    began_s = clock.boottime_s()
    server.members[0].freeze()
    try:
        wait_until(lambda: not may_act(alpha), "the deadline")
        # A keepalive may have been sent until it was frozen, and none since.
        assert alpha.deadline_s() <= began_s + TTL_S - LEASE_MARGIN_S + 1
        heard.clear()
        assert heard.wait(60)  # told of what failed, too
        wait_until(lambda: "etcd did not answer" in str(alpha.fault()), "the fault")
        assert states(alpha) == {"alpha": "ready"}  # as far as anybody here knows
        with pytest.raises(StoreError):
            alpha.directory.set_drained("alpha", drained=True)
        late = members.started("late")  # starts all the same
        assert late.fault() is not None
        assert (late.lease, may_act(late)) == (0, False)
        # Past the lease's end it is not regained, whatever etcd says later.
        wait_until(lambda: clock.boottime_s() > began_s + TTL_S + 1, "the end")
        assert not may_act(alpha)
    finally:
        server.members[0].thaw()
    wait_until(lambda: alpha.fault() is None and late.fault() is None, "all is well")
    assert alpha.lease not in (0, lease)
    assert may_act(alpha)
    wait_until(lambda: states(late) == {"alpha": "ready", "late": "ready"}, "both")


def test_a_lease_that_is_taken_away(members: Members, server: etcd.Cluster) -> None:
    alpha = members.started("alpha")
    lease = alpha.lease
    members.store.transact([], [Put("lock", b"alpha's", lease)])
    seen: list[tuple[int, bool]] = []
    alpha.add_listener(lambda: seen.append((alpha.lease, may_act(alpha))))
    server.ctl("lease", "revoke", f"{lease:x}")
    wait_until(lambda: alpha.lease not in (0, lease), "a new lease")
    wait_until(lambda: (alpha.lease, True) in seen, "that it is told")
    assert (0, False) in seen
    members.store.refresh(10)
    assert members.store.get("lock") is None
    assert states(alpha) == {"alpha": "ready"}


def test_a_lease_waits_for_no_look_at_the_machine(
    members: Members, server: etcd.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resolver or a disk may hang, and containers are frozen without a lease."""
    alpha = members.started("alpha", addresses=("10.0.0.1",))
    asked, go_on = threading.Event(), threading.Event()

    def hang() -> tuple[int, int]:
        asked.set()
        go_on.wait(60)
        return 1000, 600

    monkeypatch.setattr(members.machines["alpha"], "capacity", hang)
    again = members.restarted(alpha)
    try:
        assert asked.wait(20)
        lease = again.lease
        server.ctl("lease", "revoke", f"{lease:x}")
        wait_until(lambda: again.lease not in (0, lease), "a new lease")
        assert states(again) == {"alpha": "ready"}
    finally:
        go_on.set()


def test_records_deleted_by_hand_come_back(
    members: Members, server: etcd.Cluster, prefix: str
) -> None:
    alpha = members.started("alpha")
    lease = alpha.lease
    server.ctl("del", "--prefix", f"{prefix}records/")
    wait_until(lambda: states(alpha) == {}, "the deletion")
    alpha.addresses_changed()
    wait_until(lambda: states(alpha) == {"alpha": "ready"}, "the records")
    assert alpha.lease == lease
    with pytest.raises(NodeConflictError):
        members.started("alpha")


STOPPED = """
import sys, uuid
from backends.system import clock
from plugin.store.etcd.settings import EtcdSettings
from plugin.store.etcd.store import EtcdStore
from tests.support.members import Members

endpoint, prefix, ttl_s = sys.argv[1:]
settings = EtcdSettings((endpoint,), prefix=prefix)
members = Members(lambda: EtcdStore(settings), ttl_s=float(ttl_s))
alpha = members.started("alpha")
while True:
    deadline_s, lease = alpha.deadline_s(), alpha.lease
    print(clock.boottime_s(), deadline_s, lease, flush=True)
    clock.pause(0.02)
"""


def test_a_stopped_daemon_finds_its_deadline_passed(
    server: etcd.Cluster, prefix: str
) -> None:
    server.heal()
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED, server.endpoints[0], prefix, str(TTL_S)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    ) as daemon:
        try:
            assert daemon.stdout is not None
            now_s, deadline_s, lease = (float(each) for each in next_line(daemon))
            assert now_s < deadline_s
            daemon.send_signal(signal.SIGSTOP)
            stopped_s = clock.boottime_s()
            time.sleep(TTL_S + 1)
            daemon.send_signal(signal.SIGCONT)
            after = []
            while not after or after[-1][2] in (0, lease):
                line = tuple(float(each) for each in next_line(daemon))
                if line[0] > stopped_s + TTL_S:
                    after.append(line)
            # It may act again under another lease only.
            old = [line for line in after if line[2] == lease]
            assert all(now_s > deadline_s for now_s, deadline_s, _ in old)
            assert after[-1][0] < after[-1][1]
        finally:
            daemon.kill()


def next_line(daemon: subprocess.Popen[str]) -> list[str]:
    assert daemon.stdout is not None
    line = daemon.stdout.readline()
    assert line, "the daemon has ended"
    return line.split()
