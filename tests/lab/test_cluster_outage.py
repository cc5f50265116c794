"""
etcd is wholly down: what runs goes on or stands still, and Docker gets its answers.

Alpha asks its peers for time and goes on. Beta does not: its container stands still
until etcd is back. Gamma's is killed before that. Afterwards all resumes by itself.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping

import pytest

from tests.lab.cluster import NAMES, POOL, TOPOLOGY, Cluster, Member
from tests.lab.lab import Lab
from tests.lab.services import Engine
from tests.support.host import wait_until
from tests.support.images import BUSYBOX_IMAGE

__all__ = ["TOPOLOGY"]

SETTINGS = {
    "beta": {"failsafe": "false", "freeze_max_s": "3600"},
    "gamma": {"failsafe": "false", "freeze_max_s": "10"},
}
# Longer than a lease, its margin, and gamma's patience.
SHORT_S, LONG_S = 40.0, 600.0
# Within it Mount has to say what is wrong; the rest is the lab's.
MOUNT_ANSWER_S, LAB_S = 5.0, 2.0
DOCKER_ANSWER_S = 15.0
# A container that was frozen misses far more beats.
GAP_MAX_S = 10.0
# After the deadline, for the guard to stop whoever writes.
FENCED_S = 1.0
RESUMED_S = 90.0
KILLED_EXIT = "137"
# The boot clock, because no fault of ours changes it.
BEAT = """
trap 'exit 0' TERM
while :; do
    read -r up rest </proc/uptime
    echo "$up" >>/v/beats
    sleep 0.2
done
"""


@pytest.fixture(scope="module")
def engines(shared_lab: Lab, shared_cluster: Cluster) -> Iterator[Mapping[str, Engine]]:
    """Yield an engine on each node, beside the daemon."""
    engines = {name: Engine(shared_lab[name]) for name in NAMES}
    for each in engines.values():
        each.launch()
    for each in engines.values():
        each.wait_ready()
        each.load_busybox()
    yield engines
    for each in engines.values():
        each.stop()


@pytest.fixture
def containers(engines: Mapping[str, Engine]) -> Iterator[None]:
    """Leave no container."""
    yield
    for each in engines.values():
        if ids := each.out("ps", "-aq").split():
            each.docker("rm", "-f", *ids)


def start(engine: Engine, member: Member, volume: str) -> None:
    """Run a container that writes the time into its new *volume*."""
    member.made(volume)
    engine.docker(
        *("run", "-d", "--name", volume, "--network", "none"),
        *("--volume-driver", "remora", "-v", f"{volume}:/v"),
        *(BUSYBOX_IMAGE, "sh", "-euc", BEAT),
    )
    wait_until(lambda: beats(member, volume), timeout_s=30, what=f"{volume} beats")


def beats(member: Member, volume: str) -> list[float]:
    """Return when the container with *volume* has written."""
    # Where the bytes lie, be they mounted or not.
    path = f"{POOL}/{member.events(volume)[-1]['id']}/live/beats"
    text = member.node.run(f"cat {path} || :").stdout
    return [float(each) for each in text.split()]


def locked(cluster: Cluster) -> int:
    """Return how many volumes are owned, as etcd knows."""
    keys = cluster.etcd.ctl("get", "--prefix", "--keys-only", "/remora/")
    return sum(key.endswith("/lock") for key in keys.split())


def refused_in_time(member: Member, volume: str) -> str:
    """Return what Mount answers; fail if that takes too long."""
    start_s = time.monotonic()
    error = member.refusal("Mount", volume, ID="refused")
    took_s = time.monotonic() - start_s
    print(f"Mount was refused in {took_s:.2f} s: {error}")
    assert took_s < MOUNT_ANSWER_S + LAB_S
    return error


def answered_in_time(engine: Engine, *args: str, besides_s: float = 0.0) -> str:
    """Return what `docker ARGS...` prints; fail if that takes too long."""
    start_s = time.monotonic()
    answer = engine.out(*args)
    took_s = time.monotonic() - start_s
    print(f"docker {' '.join(args[:2])} took {took_s:.2f} s")
    assert took_s < DOCKER_ANSWER_S + besides_s
    return answer


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "outage_s",
    [
        pytest.param(SHORT_S, id="short"),
        pytest.param(LONG_S, id="long", marks=[pytest.mark.long]),
    ],
)
def test_etcd_is_wholly_down(
    cluster: Cluster,
    engines: Mapping[str, Engine],
    containers: None,
    outage_s: float,
) -> None:
    alpha, docker = cluster["alpha"], engines["alpha"]
    stopped, spare, held = (
        f"{what}-{outage_s:g}" for what in ("stop", "spare", "held")
    )
    volumes = {name: f"{name}-{outage_s:g}" for name in NAMES}
    for name in NAMES:
        start(engines[name], cluster[name], volumes[name])
    start(docker, alpha, stopped)
    alpha.made(spare)
    alpha.made(held)
    alpha.mount(held)
    before = {*alpha.names()}

    cluster.etcd.stop_all()
    down_s = time.monotonic()
    # First with a lease that still lives, then without one.
    assert refused_in_time(alpha, spare).startswith("store-unavailable:")
    lost = {n: lost_at_s(cluster[n], volumes[n]) for n in ("beta", "gamma")}
    assert refused_in_time(alpha, spare).startswith("store-unavailable:")
    assert {*answered_in_time(docker, "volume", "ls", "-q").split()} == before
    assert spare in answered_in_time(docker, "volume", "inspect", spare)
    # The engine itself waits for the container, which does not hear it.
    answered_in_time(docker, "stop", "--time", "10", stopped, besides_s=10)
    assert state(docker, stopped).startswith("exited")
    alpha.unmount(held)
    assert [*alpha.nodes()] == [*NAMES]
    await_fenced(cluster, engines, volumes, lost)
    time.sleep(max(0.0, outage_s - (time.monotonic() - down_s)))
    stood_still_s = beats(cluster["beta"], volumes["beta"])[-1]
    assert stood_still_s < lost["beta"] + FENCED_S

    cluster.etcd.start_all()
    # Nobody is told: what runs goes on, what had to wait is done.
    wait_until(
        lambda: beats(cluster["beta"], volumes["beta"])[-1] > stood_still_s,
        timeout_s=RESUMED_S,
        what="beta's container runs on",
    )
    await_resumed(cluster, spare)
    written = beats(alpha, volumes["alpha"])
    gap_s = max(b - a for a, b in itertools.pairwise(written))
    assert gap_s < GAP_MAX_S
    kept = engines["gamma"].shell(volumes["gamma"], "wc -l </v/beats")
    assert int(kept) > 0


def await_fenced(
    cluster: Cluster,
    engines: Mapping[str, Engine],
    volumes: Mapping[str, str],
    lost: Mapping[str, float],
) -> None:
    """Return when gamma's container is killed; beta's is frozen, each in time."""
    wait_until(
        lambda: state(engines["gamma"], volumes["gamma"]) == f"exited {KILLED_EXIT}",
        timeout_s=120,
        what="gamma's container is killed",
    )
    for name in ("beta", "gamma"):
        last_s = beats(cluster[name], volumes[name])[-1]
        assert last_s < lost[name] + FENCED_S
    assert state(engines["beta"], volumes["beta"]).startswith("running")


def await_resumed(cluster: Cluster, spare: str) -> None:
    """Return when everything that had to wait for etcd is done."""
    alpha = cluster["alpha"]
    wait_until(
        lambda: "Mountpoint" in alpha.call("Mount", spare, ID="again"),
        timeout_s=RESUMED_S,
        what="alpha mounts a volume again",
    )
    alpha.unmount(spare, "again")
    # Those of the two containers that still run.
    wait_until(
        lambda: locked(cluster) == 2,
        timeout_s=RESUMED_S,
        what="what was unmounted meanwhile is released",
        evidence=lambda: locked(cluster),
    )
    wait_until(
        lambda: set(alpha.nodes().values()) == {"ready"},
        timeout_s=RESUMED_S,
        what="every node is ready",
        evidence=alpha.nodes,
    )


def lost_at_s(member: Member, volume: str) -> float:
    """Return until when the node's lease let containers write to *volume*."""

    def found() -> list[float]:
        events = member.events(volume)
        return [e["lease_deadline_s"] for e in events if e["event"] == "lost"]

    wait_until(found, timeout_s=60, what=f"{volume} is lost")
    assert math.isfinite(found()[-1])
    return found()[-1]


def state(engine: Engine, container: str) -> str:
    """Return a container's state and exit code."""
    shown = "{{.State.Status}} {{.State.ExitCode}}"
    return engine.out("inspect", "-f", shown, container)
