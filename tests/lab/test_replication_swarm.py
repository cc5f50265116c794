"""
A Swarm service's task and its replicated volume move together, on three real kernels.

The service writes numbered lines to its volume. What has to be there where the next
task begins follows from how the last one ended.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.cluster import NAMES, POOL, TOPOLOGY, Cluster
from tests.lab.swarm import SWARM_DEADLINE_S, Swarm, quietly
from tests.support.host import wait_until
from tests.support.images import BUSYBOX_IMAGE

__all__ = ["TOPOLOGY"]

# A swarm of three kernels takes many minutes on a machine of two processors.
pytestmark = pytest.mark.long

SETTINGS = {name: {"swarm_labels": "true"} for name in NAMES}
VOLUME = "lines"
LABEL = f"remora.volume.{VOLUME}"
MOUNT = (
    f"type=volume,source={VOLUME},target=/v,volume-driver=remora,volume-nocopy,"
    "volume-opt=replicas=2,volume-opt=interval=1s"
)
# The last line that the writer knows to be written, outside the volume.
NOTED = "/data/noted"
WRITER = f"""
n=$(cat /v/lines 2>/dev/null | wc -l)
while :; do n=$((n + 1)); echo $n >> /v/lines; echo $n > {NOTED}; sleep 0.2; done
"""


@pytest.fixture(scope="module")
def shared_swarm(shared_cluster: Cluster) -> Iterator[Swarm]:
    """Yield the module's swarm."""
    swarm = Swarm(shared_cluster)
    swarm.start()
    yield swarm
    swarm.stop()


@pytest.fixture
def swarm(shared_swarm: Swarm, cluster: Cluster) -> Iterator[Swarm]:
    """Yield the swarm without services and volumes; afterwards it is so again."""
    yield shared_swarm
    cluster.restore()
    shared_swarm.restore()
    if services := shared_swarm.out("service", "ls", "-q").split():
        shared_swarm.remove(*services)
    member = cluster["alpha"]

    def removed() -> bool:
        # What a failed node has set apart would keep the volume, as it should.
        for each in cluster.members.values():
            each.node.run(f"rm -rf {POOL}/*/quarantine/*")
        return member.call("Remove", VOLUME) == {}

    wait_until(
        removed,
        timeout_s=SWARM_DEADLINE_S,
        what="the volume is removed",
        evidence=lambda: str(member.call("Get", VOLUME)),
    )


def start(swarm: Swarm, node: str, *options: str) -> None:
    """Start the writer on *node*; it may go elsewhere from then on."""
    others = [name for name in swarm.engines if name != node]
    for name in others:
        swarm.available(name, "pause")
    create(swarm, *options)
    assert swarm.wait_running("writer") == node
    for name in others:
        swarm.available(name)
    wait_lines(swarm, node, 3)


def create(swarm: Swarm, *options: str) -> None:
    swarm.create(
        "writer",
        *("--mount", MOUNT, "--mount", "type=bind,source=/data,target=/data"),
        *options,
        command=(BUSYBOX_IMAGE, "sh", "-c", WRITER),
    )


def live(swarm: Swarm, node: str) -> str:
    """Return the directory of the volume's bytes."""
    return f"{POOL}/{swarm.cluster[node].facts(VOLUME)['id']}/live"


def lines(swarm: Swarm, node: str) -> list[int]:
    """Return the lines that *node*'s copy has; none is missing before the last."""
    path = f"{live(swarm, node)}/lines"
    shown = swarm.cluster.lab[node].out(f"cat {path} 2>/dev/null || true")
    found = [int(each) for each in shown.split()]
    assert found == list(range(1, len(found) + 1))
    return found


def wait_lines(swarm: Swarm, node: str, count: int) -> None:
    """Return when *node*'s copy has *count* lines."""
    wait_until(
        lambda: len(lines(swarm, node)) >= count,
        timeout_s=SWARM_DEADLINE_S,
        interval_s=0.5,
        what=f"{count} lines on {node}",
        evidence=lambda: swarm.history("writer"),
    )


def copied(swarm: Swarm, owner: str) -> int:
    """Return how many lines another node has, as soon as it has some."""
    member = swarm.cluster[owner]

    def others() -> list[str]:
        return [each for each in member.facts(VOLUME)["holders"] if each != owner]

    wait_until(others, timeout_s=SWARM_DEADLINE_S, what="another node has a copy")
    (other,) = others()
    wait_lines(swarm, other, 3)
    return len(lines(swarm, other))


def noted(swarm: Swarm, node: str) -> int:
    return int(swarm.cluster.lab[node].out(["cat", NOTED]))


def test_a_node_is_drained(swarm: Swarm) -> None:
    """Every line is there where the task goes on."""
    start(swarm, "alpha")
    swarm.available("alpha", "drain")
    there = swarm.wait_running("writer", but_not_on="alpha")
    written = noted(swarm, "alpha")
    wait_lines(swarm, there, written + 3)
    assert swarm.cluster[there].facts(VOLUME)["owner"] == there


def test_a_node_s_power_fails(swarm: Swarm) -> None:
    """What was copied is there where the task goes on."""
    start(swarm, "beta")
    kept = copied(swarm, "beta")
    swarm.cluster.lab["beta"].power_off()
    there = swarm.wait_running("writer", but_not_on="beta")
    wait_lines(swarm, there, kept + 3)
    assert swarm.cluster[there].facts(VOLUME)["owner"] == there


def test_the_leader_s_power_fails_while_it_runs_the_task(swarm: Swarm) -> None:
    leader = swarm.leader()
    start(swarm, leader)
    kept = copied(swarm, leader)
    swarm.cluster.lab[leader].power_off()
    there = swarm.wait_running("writer", but_not_on=leader)
    wait_lines(swarm, there, kept + 3)
    assert swarm.leader() != leader


def test_an_update_stops_the_old_task_first(swarm: Swarm) -> None:
    """The next task may be on any node, and has every line."""
    start(swarm, "alpha", "--update-order", "stop-first")
    swarm.available("alpha", "pause")
    swarm.out("service", "update", "--detach", "--env-add", "VERSION=2", "writer")
    there = swarm.wait_running("writer", but_not_on="alpha")
    wait_lines(swarm, there, noted(swarm, "alpha") + 3)


def test_an_update_that_starts_first_stays_on_its_node(swarm: Swarm) -> None:
    """
    On the owner's node both tasks share the volume for a moment.

    On another node the new task cannot begin: the old one, which Swarm lets run until
    then, has the volume.
    """
    start(swarm, "alpha", "--update-order", "start-first")
    swarm.available("alpha", "pause")
    update = ("service", "update", "--detach", "--env-add")
    swarm.out(*update, "VERSION=2", "writer")
    wait_until(
        lambda: "not-owner" in swarm.history("writer"),
        timeout_s=SWARM_DEADLINE_S,
        interval_s=1.0,
        what="Swarm tells why the new task does not begin",
        evidence=lambda: swarm.history("writer"),
    )
    print(swarm.history("writer"))
    before = len(lines(swarm, "alpha"))
    wait_lines(swarm, "alpha", before + 3)
    swarm.available("alpha")
    for name in ("beta", "gamma"):
        swarm.available(name, "pause")
    swarm.out(*update, "VERSION=3", "writer")
    wait_until(
        lambda: "completed" in status(swarm),
        timeout_s=SWARM_DEADLINE_S,
        interval_s=1.0,
        what="the update is done",
        evidence=lambda: status(swarm) + swarm.history("writer"),
    )
    assert swarm.wait_running("writer") == "alpha"


def status(swarm: Swarm) -> str:
    """Return how far the update of the writer is."""
    return swarm.out("service", "inspect", "--format", "{{.UpdateStatus}}", "writer")


def test_a_task_comes_to_its_data(swarm: Swarm) -> None:
    """Managers label the nodes; constraints go by that."""
    start(swarm, "beta", "--constraint", f"node.labels.{LABEL} != none")
    copied(swarm, "beta")
    other = wait_labels(swarm, owner="beta")
    swarm.available("beta", "drain")
    assert swarm.wait_running("writer", but_not_on="beta") == other
    swarm.available("beta")
    assert wait_labels(swarm, owner=other) == "beta"
    swarm.remove("writer")
    written = len(lines(swarm, other))
    create(swarm, "--constraint", f"node.labels.{LABEL} == owner")
    assert swarm.wait_running("writer") == other
    wait_lines(swarm, other, written + 3)


def wait_labels(swarm: Swarm, *, owner: str) -> str:
    """Return which node is labelled `replica` when *owner* is, and the third `none`."""
    shown: list[dict[str, str]] = []

    def labelled() -> bool:
        nodes = swarm.manager.get("/nodes")
        shown.append(
            {
                each["Description"]["Hostname"]: each["Spec"]["Labels"][LABEL]
                for each in nodes
                if LABEL in each["Spec"]["Labels"]
            }
        )
        kinds = sorted(shown[-1].values())
        return shown[-1].get(owner) == "owner" and kinds == ["none", "owner", "replica"]

    wait_until(
        lambda: quietly(labelled),
        timeout_s=SWARM_DEADLINE_S,
        what=f"{owner} is labelled owner",
        evidence=lambda: str(shown),
        interval_s=1.0,
    )
    (other,) = [name for name, kind in shown[-1].items() if kind == "replica"]
    return other
