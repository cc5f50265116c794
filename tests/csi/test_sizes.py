"""Sizes that storage holds: btrfs with quotas. XFS has them in few kernels of tests."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.protocol.node import Node, wait_until
from tests.support.csi import Driver, mount, published
from tests.support.hung_disk import hung
from tests.support.tuning import tuned

# They share a node and its driver.
pytestmark = pytest.mark.xdist_group("csi-sizes")
MIB = 2**20
POOL_SIZE = 320 * MIB


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """Yield a node with a pool on btrfs."""
    made = Node()
    try:
        image = made.directory / "image"
        with image.open("wb") as file:
            file.truncate(POOL_SIZE)
        made.run("mkfs.btrfs", "-q", str(image))
        made.pool.mkdir(parents=True)
        made.run("mount", "-o", "loop", str(image), str(made.pool))
        made.run("btrfs", "quota", "enable", str(made.pool))
        made.tuning = tuned(reconcile_interval_s=0.2)
        made.start()
        yield made
    finally:
        made.close()


def sized(required: int, limit: int = 0) -> dict[str, int]:
    return {"required_bytes": required, "limit_bytes": limit}


def fill(path: Path, size: int) -> int:
    """Return the error with which writing *size* bytes ends, 0 for none."""
    try:
        with path.open("wb") as file:
            file.write(b"x" * size)
            file.flush()
    except OSError as error:
        return error.errno or 0
    return 0


def test_a_size_is_a_limit_and_grows_in_use(driver: Driver, node: Node) -> None:
    asked = {
        "name": "v",
        "volume_capabilities": [mount()],
        "parameters": {"enforceSize": "true"},
    }
    made = driver.call("CreateVolume", **asked, capacity_range=sized(4 * MIB)).volume
    assert made.capacity_bytes == 4 * MIB
    assert made.volume_context == {"sizeEnforced": "true"}
    again = driver.call("CreateVolume", **asked, capacity_range=sized(4 * MIB)).volume
    assert again == made
    other = driver.refused("CreateVolume", **asked, capacity_range=sized(5 * MIB))
    assert other[0] == "ALREADY_EXISTS"
    target = driver.target("v")
    driver.publish("v", target)
    file = driver.inside(target) / "file"
    assert fill(file, 6 * MIB) in (errno.ENOSPC, errno.EDQUOT)
    at = {"volume_id": "v", "volume_path": str(target)}
    usage = {e.unit: e for e in driver.call("NodeGetVolumeStats", **at).usage}
    assert usage[1].total == 4 * MIB

    grown = driver.call(
        "ControllerExpandVolume", volume_id="v", capacity_range=sized(12 * MIB)
    )
    assert (grown.capacity_bytes, grown.node_expansion_required) == (12 * MIB, True)
    for _ in range(2):
        held = driver.call("NodeExpandVolume", **at, capacity_range=sized(12 * MIB))
        assert held.capacity_bytes == 12 * MIB
    assert fill(file, 6 * MIB) == 0
    # The same claim again, of a sidecar that knows only the size of the beginning.
    again = driver.call("CreateVolume", **asked, capacity_range=sized(4 * MIB)).volume
    assert again.capacity_bytes == 12 * MIB
    driver.unpublish("v", target)


def test_a_daemon_that_was_killed_holds_the_new_size(
    driver: Driver, node: Node
) -> None:
    """The record says it first; a copy that lacks it is held to it later."""
    driver.call(
        "CreateVolume",
        name="w",
        volume_capabilities=[mount()],
        capacity_range=sized(4 * MIB),
    )
    target = driver.target("w")
    driver.publish("w", target)
    home = node.path(node.pool / "volumes" / node.get("w")["Status"]["id"])
    told = home / "volume.json"
    before = told.read_text()
    driver.call("ControllerExpandVolume", volume_id="w", capacity_range=sized(8 * MIB))
    # As if it had been killed before its own copy was held to it.
    node.kill()
    number = before.count("4194304")
    assert number
    told.write_text(before)
    node.start()
    wait_until(lambda: "8388608" in told.read_text(), "the copy is held to it")
    assert fill(driver.inside(target) / "file", 6 * MIB) == 0
    driver.unpublish("w", target)


def test_what_no_pool_has(driver: Driver) -> None:
    asked = {"name": "huge", "volume_capabilities": [mount()]}
    sizes = {"OUT_OF_RANGE": POOL_SIZE * 2, "RESOURCE_EXHAUSTED": POOL_SIZE - 20 * MIB}
    for code, size in sizes.items():
        told = driver.refused("CreateVolume", **asked, capacity_range=sized(size))
        assert told[0] == code, told
    driver.call("CreateVolume", **asked, capacity_range=sized(MIB))
    more = {"volume_id": "huge", "capacity_range": sized(POOL_SIZE * 2)}
    assert driver.refused("ControllerExpandVolume", **more)[0] == "OUT_OF_RANGE"


def test_storage_that_is_silent_is_unavailable(driver: Driver, node: Node) -> None:
    node.create("silent")
    target = driver.target("silent")
    driver.publish("silent", target)
    asked = {"volume_id": "silent", "volume_path": str(target)}
    with hung(node, target):
        assert driver.refused("NodeGetVolumeStats", **asked)[0] == "UNAVAILABLE"
        # The disk that hangs lies on top of the volume; both go, whoever has asked it.
        driver.unpublish("silent", target)
        assert not driver.is_bound(target)


def test_the_disk_below_a_volume_is_not_taken_for_it(
    driver: Driver, node: Node
) -> None:
    node.create("taken-away")
    target = driver.target("taken-away")
    driver.publish("taken-away", target)
    node.run("umount", str(target))
    asked = {"volume_id": "taken-away", "volume_path": str(target)}
    assert driver.refused("NodeGetVolumeStats", **asked)[0] == "NOT_FOUND"
    driver.publish("taken-away", target)
    assert driver.is_bound(target)
    driver.unpublish("taken-away", target)


def test_a_daemon_that_is_away_is_unavailable(driver: Driver, node: Node) -> None:
    target = driver.target("away")
    node.kill()
    assert not driver.call("Probe").ready.value
    asked = published("v", target)
    assert driver.refused("NodePublishVolume", **asked)[0] == "UNAVAILABLE"
    assert driver.refused("ListVolumes")[0] == "UNAVAILABLE"
    node.start()
    assert driver.call("Probe").ready.value


def test_a_copy_that_is_too_small_is_out_of_range(driver: Driver, node: Node) -> None:
    node.create("large")
    target = driver.target("large")
    driver.publish("large", target)
    assert not fill(driver.inside(target) / "file", 20 * MIB)
    asked = {
        "name": "small",
        "volume_capabilities": [mount()],
        "volume_content_source": {"volume": {"volume_id": "large"}},
    }
    small = {"capacity_range": sized(4 * MIB)}
    code, text = driver.refused("CreateVolume", **asked, **small)
    assert (code, "'large'" in text) == ("OUT_OF_RANGE", True)
    assert "small" not in node.names()
    driver.call("CreateVolume", **asked, capacity_range=sized(40 * MIB))
    driver.unpublish("large", target)
