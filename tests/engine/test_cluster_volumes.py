"""
Swarm's cluster volumes: a service's task moves, and its volume with it.

The engines are Docker 28.5's, on two machines; the plugin is the one that users build.
"""

from __future__ import annotations

import shlex
import subprocess
import time
from typing import TYPE_CHECKING, Final

import pytest

from tests.support import managed
from tests.support.cluster_volumes import Swarm
from tests.support.guides import Printed, changed
from tests.support.host import REPOSITORY
from tests.support.images import BUSYBOX_IMAGE

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.long,
    pytest.mark.xdist_group("engine-cluster-volumes"),
    pytest.mark.timeout(1200),
]

WRITER: Final = """
n=$(cat /v/lines 2>/dev/null | wc -l)
while :; do n=$((n + 1)); echo $n >> /v/lines; sleep 0.2; done
"""
COPIED: Final = ("-o", "replicas=2", "-o", "interval=1s")
# Swarm takes a node for down after 15 s.
FAILOVER_S: Final = 60.0


@pytest.fixture(scope="module")
def shared_swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    if lacking := managed.missing():
        pytest.skip(f"needs {lacking}")
    built = tmp_path_factory.mktemp("cluster-volumes") / "plugin"
    managed.build(built, "cluster-volumes")
    swarm = Swarm(built)
    yield swarm
    swarm.close()


@pytest.fixture
def swarm(shared_swarm: Swarm) -> Iterator[Swarm]:
    """Yield the swarm without services; afterwards it is so again."""
    yield shared_swarm
    shared_swarm.network.mend(shared_swarm.hosts["beta"])
    for node in shared_swarm.hosts:
        shared_swarm.available(node)
    for service in shared_swarm.engine.out("service", "ls", "-q").split():
        shared_swarm.engine.docker("service", "rm", service)
    for node in shared_swarm.hosts:
        shared_swarm.wait(
            lambda n=node: not shared_swarm.published(n), f"{node} has let go"
        )


def start(swarm: Swarm, name: str, node: str) -> None:
    """Start a writer on *node*; it may go elsewhere from then on."""
    others = [each for each in swarm.hosts if each != node]
    for each in others:
        swarm.available(each, "pause")
    swarm.create(name, *COPIED)
    swarm.serve(name, name, WRITER)
    swarm.wait_running(name, node)
    for each in others:
        swarm.available(each)
    swarm.wait(lambda: swarm.lines(node, name) > 5, "it writes")


def test_both_nodes_know_the_driver(swarm: Swarm) -> None:
    for node in swarm.hosts:
        [found] = swarm.engine.inspect("node", node)["Description"]["CSIInfo"]
        assert (found["PluginName"], found["NodeID"]) == ("remora-cluster:latest", node)


def test_a_node_is_drained(swarm: Swarm) -> None:
    """Every line is there where the task goes on, within Swarm's patience."""
    start(swarm, "drained", "alpha")
    began_s = time.monotonic()
    swarm.available("alpha", "drain")
    swarm.wait_running("drained", "beta")
    print(f"running elsewhere after {time.monotonic() - began_s:.1f} s")
    swarm.wait(lambda: not swarm.published("alpha"), "alpha has let go")
    written = swarm.lines("alpha", "drained")
    swarm.wait(lambda: swarm.lines("beta", "drained") > written + 5, "it goes on")
    assert swarm.volume("beta", "drained")["owner"] == "beta"


def test_a_node_is_dead(swarm: Swarm) -> None:
    """Its task runs elsewhere, with what was copied, and no hand is needed."""
    start(swarm, "dead", "beta")
    swarm.wait(lambda: swarm.lines("alpha", "dead"), "alpha has a copy")
    kept = swarm.lines("alpha", "dead")
    began_s = time.monotonic()
    swarm.network.cut(swarm.hosts["beta"])
    swarm.wait(
        lambda: swarm.running_on("dead") == "alpha",
        "it runs on alpha",
        timeout_s=FAILOVER_S,
    )
    print(f"running elsewhere after {time.monotonic() - began_s:.1f} s")
    frozen = swarm.lines("beta", "dead")
    swarm.wait(lambda: swarm.lines("alpha", "dead") > kept + 5, "it goes on")
    assert swarm.lines("beta", "dead") == frozen


def test_an_engine_starts_anew(swarm: Swarm) -> None:
    """The task goes on with its volume on one of the nodes."""
    start(swarm, "restarted", "beta")
    written = swarm.lines("beta", "restarted")
    both = list(swarm.hosts)
    swarm.plugins["beta"].engine.restart()
    # Meanwhile the other node may have been given the task.
    swarm.wait(
        lambda: any(swarm.lines(each, "restarted") > written + 5 for each in both),
        "it goes on",
    )


@pytest.mark.printed("swarm-cluster-volumes.md", "The plugin")
def test_the_plugin_is_built_and_enabled_as_the_guide_says(
    swarm: Swarm, printed: Printed
) -> None:
    """The fixture has done it; these are the same commands."""
    make = ["make", "--dry-run", *printed.take("make").text.split()[1:]]
    done = subprocess.run(
        make, cwd=REPOSITORY, check=True, capture_output=True, text=True, timeout=60
    )
    assert "build cluster-volumes --name remora-cluster" in done.stdout
    assert printed.take("install").text.endswith(" /var/lib/remora")
    node = swarm.plugins["alpha"]
    assert printed.take("docker plugin").text.split()[2:] == [
        "enable",
        "remora-cluster",
    ]
    assert node.name == "remora-cluster:latest"
    assert node.enabled


@pytest.mark.printed("swarm-cluster-volumes.md", "A volume and its service")
def test_a_service_as_the_guide_has_it(swarm: Swarm, printed: Printed) -> None:
    places = {
        "mariadb:10.11": f"{BUSYBOX_IMAGE} sleep 1000",
        "--name shop": "--name shop --detach --no-resolve-image --network host",
    }
    for beginning in ("docker volume create", "docker service create"):
        command = changed(printed.take(beginning).text, places)
        swarm.engine.docker(*shlex.split(command)[1:])
    swarm.wait(lambda: swarm.running_on("shop"), "the task runs")
    assert "rows" in swarm.engine.out(*printed.take("docker").text.split()[1:])
    assert swarm.volume("alpha", "rows")["options"]["replicas"] == "2"


def test_the_daemon_in_the_plugin_is_killed(swarm: Swarm) -> None:
    """The engine starts both programs again, and the volume moves as before."""
    start(swarm, "killed", "beta")
    host = swarm.hosts["beta"]
    find = ["pgrep", "-f", "/usr/bin/remora serve"]
    before = host.run(find).stdout.split()
    host.run(["kill", "-KILL", *before])
    swarm.wait(
        lambda: (
            set(host.run(find, check=False).stdout.split()) - set(before)
            and swarm.volume("beta", "killed")
        ),
        "another one answers",
    )
    written = swarm.lines("beta", "killed")
    swarm.wait(lambda: swarm.lines("beta", "killed") > written + 5, "it writes on")
    swarm.available("beta", "drain")
    swarm.wait_running("killed", "alpha")
    swarm.wait(lambda: not swarm.published("beta"), "beta has let go")
    written = swarm.lines("beta", "killed")
    swarm.wait(lambda: swarm.lines("alpha", "killed") > written + 5, "it goes on")
