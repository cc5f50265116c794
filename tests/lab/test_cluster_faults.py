"""What the tests of the cluster break does break, and nothing else."""

from __future__ import annotations

import signal

import pytest

from tests.lab.cluster import CHANNEL_PORT, NAMES, SHARED, Cluster
from tests.lab.etcd import CLIENT_PORT
from tests.lab.invariants import SKEW_S

TOPOLOGY = SHARED

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


def probe(cluster: Cluster, name: str, port: int) -> list[str]:
    """Return for each node whether *name* hears something of its *port*."""
    addresses = [f"{cluster[each].node.ipv4}:{port}" for each in NAMES]
    argv = ["/usr/bin/python3", "-ISEc", PROBE, *addresses]
    return cluster[name].node.out(argv, timeout_s=60).split()


def test_a_node_is_cut_from_etcd_alone(cluster: Cluster) -> None:
    cluster.cut_from_etcd("alpha")
    assert probe(cluster, "alpha", CLIENT_PORT) == ["silent"] * 3
    assert probe(cluster, "alpha", CHANNEL_PORT) == ["heard"] * 3
    assert probe(cluster, "beta", CLIENT_PORT) == ["heard"] * 3
    cluster.etcd.await_health()
    cluster.end_filters("alpha")
    assert probe(cluster, "alpha", CLIENT_PORT) == ["heard"] * 3


def test_a_node_is_cut_from_its_peers_alone(cluster: Cluster) -> None:
    cluster.cut_from_peers("alpha")
    assert probe(cluster, "alpha", CHANNEL_PORT) == ["silent"] * 3
    assert probe(cluster, "beta", CHANNEL_PORT) == ["silent", "heard", "heard"]
    assert probe(cluster, "alpha", CLIENT_PORT) == ["heard"] * 3
    cluster.restore()
    assert probe(cluster, "beta", CHANNEL_PORT) == ["heard"] * 3


@pytest.mark.parametrize("offset_s", [HOUR_S, -HOUR_S])
def test_a_wall_clock_jumps_alone(cluster: Cluster, offset_s: float) -> None:
    """The boot clock runs on, and so do etcd's leases and elections."""
    before = cluster["alpha"].boot_clock()
    wall = int(cluster["alpha"].node.out("date +%s"))
    lease = cluster.etcd.ctl("lease", "grant", "300").split()[1]
    for name in NAMES:
        cluster.set_clock(name, offset_s)
    jumped = int(cluster["alpha"].node.out("date +%s"))
    assert abs(jumped - wall - offset_s) < HOUR_S / 6
    after = cluster["alpha"].boot_clock()
    assert after.boot == before.boot
    drift_s = (after.uptime_s - before.uptime_s) - (after.at_s - before.at_s)
    assert abs(drift_s) < SKEW_S
    left_s = cluster.etcd.ctl("lease", "timetolive", lease).split("remaining(")[1]
    assert 0 < int(left_s.rstrip("s)")) <= 300
    cluster.etcd.await_health()
    cluster.restore()
    assert abs(int(cluster["alpha"].node.out("date +%s")) - wall) < HOUR_S / 6


def test_a_frozen_daemon_is_silent_and_goes_on(cluster: Cluster) -> None:
    pid, known = cluster["alpha"].remora.pid, cluster["alpha"].names()
    cluster.signal_daemon("alpha", signal.SIGSTOP)
    with pytest.raises(OSError, match="timed out"):
        cluster["alpha"].remora.call("List", {}, timeout_s=2)
    cluster.signal_daemon("alpha", signal.SIGCONT)
    assert cluster["alpha"].names() == known
    assert cluster["alpha"].remora.pid == pid


def test_everything_at_once_is_mended(cluster: Cluster) -> None:
    known = cluster["alpha"].names()
    cluster.lab["alpha"].power_off()
    cluster.kill_daemon("beta")
    cluster.etcd.kill("beta")
    cluster.signal_daemon("gamma", signal.SIGSTOP)
    cluster.etcd.freeze("gamma")
    cluster.cut_from_etcd("gamma")
    cluster.set_clock("gamma", HOUR_S)
    cluster.lab["gamma"].cut()
    cluster.restore()
    cluster.etcd.await_health()
    assert [cluster[name].names() for name in NAMES] == [known] * 3
    assert probe(cluster, "gamma", CLIENT_PORT) == ["heard"] * 3
