"""What the tests of the cluster break does break, and nothing else."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.lab.cluster import CHANNEL_PORT, NAMES, TOPOLOGY, Cluster
from tests.lab.etcd import CLIENT_PORT
from tests.lab.invariants import SKEW_S
from tests.lab.lab import Lab

__all__ = ["TOPOLOGY"]

HOUR_S = 3600.0
# Prints which of the addresses accept or refuse, and which stay silent.
PROBE = """
import socket, sys
for address in sys.argv[1:]:
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except ConnectionRefusedError:
        pass
    except OSError:
        print("silent")
        continue
    print("heard")
"""


@pytest.fixture(scope="module")
def started(shared_lab: Lab) -> Iterator[Cluster]:
    """Yield the cluster; here it does not matter what its daemons do."""
    cluster = Cluster(shared_lab)
    cluster.start()
    yield cluster
    cluster.stop()


@pytest.fixture
def whole(started: Cluster) -> Iterator[Cluster]:
    """Yield the cluster; afterwards it is whole."""
    yield started
    started.restore()


def probe(cluster: Cluster, name: str, port: int) -> list[str]:
    """Return for each node whether *name* hears something of its *port*."""
    addresses = [f"{cluster[each].node.ipv4}:{port}" for each in NAMES]
    argv = ["/usr/bin/python3", "-ISEc", PROBE, *addresses]
    return cluster[name].node.out(argv, timeout_s=60).split()


def test_a_node_is_cut_from_etcd_alone(whole: Cluster) -> None:
    whole.cut_from_etcd("alpha")
    assert probe(whole, "alpha", CLIENT_PORT) == ["silent"] * 3
    assert probe(whole, "alpha", CHANNEL_PORT) == ["heard"] * 3
    assert probe(whole, "beta", CLIENT_PORT) == ["heard"] * 3
    assert all(whole.etcd.health().values())
    whole.end_filters("alpha")
    assert probe(whole, "alpha", CLIENT_PORT) == ["heard"] * 3


def test_a_node_is_cut_from_its_peers_alone(whole: Cluster) -> None:
    whole.cut_from_peers("alpha")
    assert probe(whole, "alpha", CHANNEL_PORT) == ["silent"] * 3
    assert probe(whole, "beta", CHANNEL_PORT) == ["silent", "heard", "heard"]
    assert probe(whole, "alpha", CLIENT_PORT) == ["heard"] * 3
    whole.restore()
    assert probe(whole, "beta", CHANNEL_PORT) == ["heard"] * 3


@pytest.mark.parametrize("offset_s", [HOUR_S, -HOUR_S])
def test_a_wall_clock_jumps_alone(whole: Cluster, offset_s: float) -> None:
    """The boot clock runs on, and so do etcd's leases and elections."""
    before = whole["alpha"].boot_clock()
    wall = int(whole["alpha"].node.out("date +%s"))
    lease = whole.etcd.ctl("lease", "grant", "300").split()[1]
    for name in NAMES:
        whole.set_clock(name, offset_s)
    jumped = int(whole["alpha"].node.out("date +%s"))
    assert abs(jumped - wall - offset_s) < HOUR_S / 6
    after = whole["alpha"].boot_clock()
    assert after.boot == before.boot
    drift_s = (after.uptime_s - before.uptime_s) - (after.at_s - before.at_s)
    assert abs(drift_s) < SKEW_S
    left_s = whole.etcd.ctl("lease", "timetolive", lease).split("remaining(")[1]
    assert 0 < int(left_s.rstrip("s)")) <= 300
    assert all(whole.etcd.health().values())
    whole.restore()
    assert abs(int(whole["alpha"].node.out("date +%s")) - wall) < HOUR_S / 6


def test_a_frozen_daemon_is_silent_and_goes_on(whole: Cluster) -> None:
    pid = whole["alpha"].remora.pid
    whole.signal_daemon("alpha", signal.SIGSTOP)
    with pytest.raises(OSError, match="timed out"):
        whole["alpha"].remora.call("List", {}, timeout_s=2)
    whole.signal_daemon("alpha", signal.SIGCONT)
    assert whole["alpha"].names() == []
    assert whole["alpha"].remora.pid == pid


def test_everything_at_once_is_mended(whole: Cluster) -> None:
    whole.lab["alpha"].power_off()
    whole.kill_daemon("beta")
    whole.etcd.kill("beta")
    whole.signal_daemon("gamma", signal.SIGSTOP)
    whole.etcd.freeze("gamma")
    whole.cut_from_etcd("gamma")
    whole.set_clock("gamma", HOUR_S)
    whole.lab["gamma"].cut()
    whole.restore()
    assert all(whole.etcd.health().values())
    assert [whole[name].names() for name in NAMES] == [[], [], []]
    assert probe(whole, "gamma", CLIENT_PORT) == ["heard"] * 3
