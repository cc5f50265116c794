"""
Two nodes: a volume follows its pod, and two writers there are never.

Of the recorded sequences: a pod that is rescheduled (Kubernetes), a task whose new node
publishes before the old one unpublishes (Swarm), a node that is dead.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.protocol.node import wait_until
from tests.support.csi import ANY_WRITER, Driver, mount, published
from tests.support.owners import Owner, now_s

Make = Callable[..., Owner]
WAIT_S = 60.0
SLOW_SIZE = 4 * 2**20
POD = {
    "csi.storage.k8s.io/pod.namespace": "shop",
    "csi.storage.k8s.io/pod.name": "db-0",
}


class Side:
    """A node with its driver; its directory of targets is shared, as a kubelet's is."""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.driver = Driver(owner)
        root = str(self.driver.root)
        owner.run("mount", "--bind", root, root)
        owner.run("mount", "--make-shared", root)
        self.driver.start()

    def process(self, script: str, *, propagation: str) -> subprocess.Popen[bytes]:
        """Return a process in a mount namespace of its own."""
        unshare = ["unshare", "--mount", "--propagation", propagation]
        return self.owner.popen([*unshare, "--", "sh", "-c", script])

    def writer(self, target: Path) -> subprocess.Popen[bytes]:
        """Return a container that writes to the volume at *target* all the time."""
        inside = self.owner.directory / "inside"
        inside.mkdir(exist_ok=True)
        loop = f"while sleep 0.05; do date +%s.%N >> {inside}/stamps; done"
        bind = f"mount --bind {target} {inside} && umount {target} && {loop}"
        return self.process(bind, propagation="private")

    def bystander(self) -> subprocess.Popen[bytes]:
        """Return a service with a mount namespace, into which all mounts come."""
        return self.process("exec sleep 1000", propagation="slave")

    def sees(self, process: subprocess.Popen[bytes], target: Path) -> bool:
        """Return whether *process* has a mount at *target*."""
        return f" {target} " in Path(f"/proc/{process.pid}/mountinfo").read_text()


@pytest.fixture
def sides(make_owner: Make) -> Iterator[tuple[Side, Side]]:
    """Yield two nodes of one cluster."""
    made = Side(make_owner("alpha")), Side(make_owner("beta"))
    yield made
    for each in made:
        each.driver.stop()


def create(side: Side, name: str, **fields: Any) -> Any:
    capabilities = [mount(), mount(ANY_WRITER)]
    asked = {"name": name, "volume_capabilities": capabilities, **fields}
    return side.driver.call_at_last("CreateVolume", **asked).volume


def known(side: Side, name: str) -> None:
    wait_until(
        lambda: side.driver.code("ControllerGetVolume", volume_id=name) == "OK",
        f"{side.owner.name} knows {name}",
    )


def test_a_volume_follows_its_pod(sides: tuple[Side, Side]) -> None:
    alpha, beta = sides
    wish = {"preferred": [{"segments": {"remora/node": "beta"}}]}
    made = create(alpha, "data", accessibility_requirements=wish)
    assert not made.accessible_topology
    # The first copy is where it was wished; the pod may start anywhere all the same.
    assert len(list((beta.owner.pool / "volumes").iterdir())) == 1
    there, here = beta.driver.target("pod-1"), alpha.driver.target("pod-2")
    pod = {"volume_context": POD}
    beta.driver.call("NodePublishVolume", **published("data", there), **pod)
    (beta.driver.inside(there) / "file").write_text("kept")

    code, text = alpha.driver.refused("NodePublishVolume", **published("data", here))
    assert (code, "'beta'" in text) == ("FAILED_PRECONDITION", True)
    assert beta.driver.is_bound(there)
    code, text = alpha.driver.refused("DeleteVolume", volume_id="data")
    assert (code, "'beta'" in text) == ("FAILED_PRECONDITION", True)

    beta.driver.unpublish("data", there)
    alpha.driver.call_at_last("NodePublishVolume", **published("data", here))
    assert (alpha.driver.inside(here) / "file").read_text() == "kept"
    alpha.driver.unpublish("data", here)


def test_one_bound_by_members_says_so(sides: tuple[Side, Side]) -> None:
    made = create(sides[0], "bound", parameters={"members": "alpha,beta"})
    nodes = [each.segments["remora/node"] for each in made.accessible_topology]
    assert nodes == ["alpha", "beta"]


def test_the_new_node_publishes_before_the_old_one_unpublishes(
    sides: tuple[Side, Side],
) -> None:
    alpha, beta = sides
    create(alpha, "task")
    known(beta, "task")
    # As a managed plugin has it: the same path on all nodes.
    old, new = alpha.driver.target("task"), beta.driver.target("task")
    swarm = published("task", old, ANY_WRITER)
    alpha.driver.call("NodePublishVolume", **swarm)
    (alpha.driver.inside(old) / "file").write_text("kept")
    container = alpha.writer(old)
    wait_until(lambda: not alpha.sees(container, old), "the container runs")
    asked = published("task", new, ANY_WRITER)
    code, text = beta.driver.refused("NodePublishVolume", **asked)
    assert (code, "'alpha'" in text) == ("FAILED_PRECONDITION", True)
    assert alpha.driver.is_bound(old)

    container.kill()
    container.wait()
    beta.driver.call_at_last("NodePublishVolume", **asked)
    assert (beta.driver.inside(new) / "file").read_text() == "kept"
    # Nothing can be started there with an empty directory.
    assert not alpha.driver.is_bound(old)
    assert alpha.driver.inside(old).is_file()
    assert "another node" in alpha.driver.inside(old).read_text()
    alpha.driver.unpublish("task", old)
    assert not alpha.driver.inside(old).exists()
    assert (beta.driver.inside(new) / "file").read_text() == "kept"
    beta.driver.unpublish("task", new)


def test_a_dead_nodes_volume_is_taken_over(sides: tuple[Side, Side]) -> None:
    alpha, beta = sides
    create(alpha, "lost", parameters={"interval": "1s"})
    known(beta, "lost")
    old, new = alpha.driver.target("old"), beta.driver.target("new")
    bystander = alpha.bystander()
    pod = {"volume_context": POD}
    alpha.driver.call("NodePublishVolume", **published("lost", old), **pod)
    (alpha.driver.inside(old) / "file").write_text("kept")
    wait_until(lambda: alpha.sees(bystander, old), "mounts come into its namespace")
    # As a kubelet has it for a container with a subPath.
    part = alpha.driver.targets / "old/volume-subpaths/lost/main/0"
    part.mkdir(parents=True)
    alpha.owner.run("mount", "--bind", str(old), str(part))
    wait_until(lambda: alpha.sees(bystander, part), "and parts of the volume, too")
    writer = alpha.writer(old)
    volume_id = str(alpha.owner.get("lost")["Status"]["id"])
    stamps = beta.owner.copy(volume_id) / "live/stamps"
    wait_until(stamps.exists, "beta has a copy", timeout_s=WAIT_S)

    alpha.driver.kill()
    alpha.owner.kill()
    began_s = now_s()
    beta.driver.call_at_last("NodePublishVolume", **published("lost", new))
    assert now_s() - began_s < WAIT_S
    assert (beta.driver.inside(new) / "file").read_text() == "kept"
    # The old writer stands still, though its daemon is dead.
    own = alpha.owner.copy(volume_id) / "live/stamps"
    before = own.read_text()

    alpha.owner.start()
    alpha.driver.start()
    stats = {"volume_id": "lost", "volume_path": str(old)}
    told = alpha.driver.call("NodeGetVolumeStats", **stats).volume_condition
    assert (told.abnormal, "'beta' has taken it" in told.message) == (True, True)
    wait_until(lambda: writer.poll() is not None, "it is ended", timeout_s=WAIT_S)
    assert own.read_text() == before
    assert bystander.poll() is None
    alpha.owner.run("umount", str(part))
    wait_until(
        lambda: not alpha.driver.is_bound(old), "it is taken away", timeout_s=WAIT_S
    )
    assert alpha.driver.inside(old).is_file()
    alpha.driver.unpublish("lost", old)
    assert not alpha.driver.inside(old).exists()
    assert (beta.driver.inside(new) / "file").read_text() == "kept"
    beta.driver.unpublish("lost", new)


def test_snapshots_and_copies_are_made_where_the_bytes_are(
    sides: tuple[Side, Side],
) -> None:
    """The sidecars run on one node, the pod on another."""
    alpha, beta = sides
    create(alpha, "origin", parameters={"replicas": "1"})
    known(beta, "origin")
    target = alpha.driver.target("origin")
    alpha.driver.publish("origin", target)
    (alpha.driver.inside(target) / "file").write_text("kept")
    asked = {"name": "daily", "source_volume_id": "origin"}
    taken = beta.driver.call_at_last("CreateSnapshot", **asked).snapshot
    assert beta.driver.call("CreateSnapshot", **asked).snapshot == taken
    sources = {
        "restored": {"snapshot": {"snapshot_id": "origin@daily"}},
        "cloned": {"volume": {"volume_id": "origin"}},
    }
    for name, source in sources.items():
        create(beta, name, volume_content_source=source)
        at = beta.driver.target(name)
        beta.driver.call_at_last("NodePublishVolume", **published(name, at))
        assert (beta.driver.inside(at) / "file").read_text() == "kept"
        beta.driver.unpublish(name, at)
    beta.driver.call_at_last("DeleteSnapshot", snapshot_id="origin@daily")
    assert not beta.driver.call("ListSnapshots", source_volume_id="origin").entries
    alpha.driver.unpublish("origin", target)


def test_bytes_on_their_way_are_told_and_go_on_coming(make_owner: Make) -> None:
    slow = '[replication]\nbandwidth_limit = "1M"'
    alpha, beta = (Side(make_owner(each, profiles=slow)) for each in ("alpha", "beta"))
    create(alpha, "large", parameters={"replicas": "1"})
    known(beta, "large")
    here, there = alpha.driver.target("large"), beta.driver.target("large")
    alpha.driver.publish("large", here)
    content = random.randbytes(SLOW_SIZE)
    (alpha.driver.inside(here) / "file").write_bytes(content)
    alpha.driver.unpublish("large", here)
    asked = published("large", there)
    told = []
    for _ in range(20):
        call = beta.driver.begin("NodePublishVolume", **asked, within_s=3.0)
        if call.code().name == "OK":
            break
        assert call.code().name == "ABORTED", call.details()
        told.append(call.details())
    assert any(" %" in each for each in told), told
    assert (beta.driver.inside(there) / "file").read_bytes() == content
    beta.driver.unpublish("large", there)
