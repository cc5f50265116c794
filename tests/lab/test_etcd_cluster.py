"""The lab's etcd, as the tests of the cluster rely on it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import pytest

from tests.lab.etcd import EtcdCluster
from tests.lab.lab import Lab, Topology
from tests.support.host import PYTHON_ENVIRONMENT

NAMES = ("alpha", "beta", "gamma")
TOPOLOGY = Topology.of(*NAMES)
PUTS = 20
END_FORGOTTEN = """
import sys
from plugin.store.etcd.settings import EtcdSettings
from plugin.store.etcd.store import EtcdStore
store = EtcdStore(EtcdSettings(tuple(sys.argv[1].split(","))))
print(store.end_forgotten_lease(int(sys.argv[2], 16), 5.0))
"""


@pytest.fixture(scope="module")
def shared_etcd(shared_lab: Lab) -> Iterator[EtcdCluster]:
    """Yield a member on each node, started once for the module."""
    cluster = EtcdCluster(shared_lab, NAMES)
    began_s = time.monotonic()
    cluster.start_all()
    print(
        f"[measured] etcd on three nodes works after {time.monotonic() - began_s:.1f}"
    )
    yield cluster
    cluster.stop_all()


@pytest.fixture
def etcd(lab: Lab, shared_etcd: EtcdCluster) -> Iterator[EtcdCluster]:
    """Yield the cluster; afterwards all of it works again."""
    yield shared_etcd
    lab.restore()
    shared_etcd.restore()


def test_what_was_put_outlives_every_members_end(etcd: EtcdCluster) -> None:
    for number in range(PUTS):
        etcd.ctl("put", f"key-{number}", f"value-{number}")
    etcd.stop_all()
    assert etcd.health() == dict.fromkeys(NAMES, False)
    assert not etcd.try_ctl("get", "key-0")
    etcd.start_all()
    shown = etcd.ctl("get", "--prefix", "key-", "--print-value-only").split()
    assert sorted(shown) == sorted(f"value-{number}" for number in range(PUTS))


def test_one_member_may_fail_in_any_way(lab: Lab, etcd: EtcdCluster) -> None:
    for fail in (etcd.kill, etcd.freeze, lambda name: lab[name].cut()):
        leader = etcd.leader()
        others = [name for name in NAMES if name != leader]
        fail(leader)
        etcd.ctl("put", "still", leader, member=_working(etcd, others))
        assert not etcd.health()[leader]
        lab.heal()
        etcd.restore()
        assert etcd.ctl("get", "still", "--print-value-only") == leader


def test_without_a_majority_nothing_is_answered(etcd: EtcdCluster) -> None:
    etcd.freeze("alpha")
    etcd.kill("beta")
    assert not etcd.try_ctl("put", "key", "value", member="gamma")
    etcd.thaw("alpha")
    etcd.launch("beta")
    etcd.await_health()
    assert etcd.try_ctl("put", "key", "value", member="gamma")


def test_a_power_failure_of_all_nodes_loses_nothing(
    lab: Lab, etcd: EtcdCluster
) -> None:
    etcd.ctl("put", "last", "written")
    for name in NAMES:
        lab[name].power_off()
    assert not any(member.running for member in etcd.members.values())
    lab.boot()
    etcd.start_all()
    assert etcd.ctl("get", "last", "--print-value-only") == "written"


def test_leases_end_in_their_time(etcd: EtcdCluster) -> None:
    lease = etcd.ctl("lease", "grant", "2").split()[1]
    etcd.ctl("put", "leased", "value", f"--lease={lease}")
    end_s = time.monotonic() + 60
    while etcd.ctl("get", "leased"):
        assert time.monotonic() < end_s, "the lease does not end"
        time.sleep(0.2)


def test_a_lease_that_a_clock_set_back_keeps_is_ended_by_us(
    lab: Lab, etcd: EtcdCluster
) -> None:
    """etcd 3.4 keeps it for an hour (its issue 12291); later ones end it themselves."""
    _set_clocks(lab, 3600.0)
    lease = etcd.ctl("lease", "grant", "5").split()[1]
    etcd.ctl("put", "kept", "value", f"--lease={lease}")
    _set_clocks(lab, 0.0)
    command = [sys.executable, "-c", END_FORGOTTEN, etcd.endpoints, lease]
    end_s = time.monotonic() + 60
    ended = False
    while etcd.ctl("get", "kept"):
        assert time.monotonic() < end_s, "the lease does not end"
        ended |= "True" in lab["alpha"].run(command, env=PYTHON_ENVIRONMENT).stdout
    print(f"[measured] etcd had forgotten the lease: {ended}")


def _set_clocks(lab: Lab, offset_s: float) -> None:
    for name in NAMES:
        now_s = time.clock_gettime(time.CLOCK_REALTIME) + offset_s
        lab[name].run(["date", "-s", f"@{now_s:.3f}"])


def _working(etcd: EtcdCluster, names: list[str]) -> str:
    """Return which of *names* answers; waits for the election."""
    end_s = time.monotonic() + 60
    while time.monotonic() < end_s:
        for name, works in etcd.health().items():
            if works and name in names:
                return name
    raise AssertionError(f"none of {names} works")
