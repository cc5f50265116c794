"""What is in the volumes that pods write to, as the nodes' disks show it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.kubernetes import manifests

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kubernetes.cluster import Cluster
    from tests.kubernetes.node import Node

POOL: Final = "/var/lib/remora/pool/volumes"


def make(cluster: Cluster, name: str, **options: str) -> None:
    """Make a volume and the claim of its name, as people do without a provisioner."""
    cluster["alpha"].daemon.cli(
        "create", name, *(f"--opt={key}={text}" for key, text in options.items())
    )
    for node in cluster.nodes.values():
        cluster.wait(lambda n=node: n.volume(name), f"{node.name} knows {name}")
    cluster.api.create(manifests.volume(name))
    cluster.api.create(manifests.claim(name))


def live(node: Node, name: str) -> Path:
    """Return the directory of the volume's bytes on *node*."""
    volume = node.volume(name)
    assert volume is not None, f"{node.name} does not know {name}"
    return node.host.path(f"{POOL}/{volume['id']}/live")


def lines(node: Node, name: str) -> int:
    """Return how many lines *node* has; none is missing before the last."""
    return count(live(node, name))


def count(directory: Path) -> int:
    """Return how many lines there are, as above, whether the daemon runs or not."""
    try:
        text = (directory / "lines").read_text()
    except FileNotFoundError:
        return 0
    found = [int(each) for each in text.split()]
    assert found == list(range(1, len(found) + 1)), found
    return len(found)


def wait_lines(cluster: Cluster, node: str, name: str, count: int) -> None:
    """Return when *node* has *count* lines of the volume."""
    cluster.wait(
        lambda: lines(cluster[node], name) >= count, f"{count} lines on {node}"
    )


def other(name: str) -> str:
    """Return the node that is not *name*."""
    return {"alpha": "beta", "beta": "alpha"}[name]
