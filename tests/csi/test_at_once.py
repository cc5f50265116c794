"""Many calls at once: a hundred pods, one target, two volumes for one target."""

from __future__ import annotations

import pytest

from tests.protocol.node import Node, memory_bytes
from tests.support.csi import Driver, mount, published

pytestmark = pytest.mark.xdist_group("csi-at-once")
AT_ONCE = 100
RACES = 10
MEMORY_MAX = 60 * 2**20
# So long a kubelet waits for a call.
KUBELET_S = 120.0


def test_many_pods_at_once(driver: Driver, node: Node) -> None:
    names = [f"many-{number}" for number in range(AT_ONCE)]
    for name in names:
        driver.call("CreateVolume", name=name, volume_capabilities=[mount()])
    begun = [
        driver.begin(
            "NodePublishVolume",
            within_s=KUBELET_S,
            **published(name, driver.target(name)),
        )
        for name in names
    ]
    assert {(each.code().name, each.details()) for each in begun} == {("OK", "")}
    assert memory_bytes(driver.pid) < MEMORY_MAX
    asked = [{"volume_id": n, "target_path": str(driver.target(n))} for n in names]
    begun = [
        driver.begin("NodeUnpublishVolume", within_s=KUBELET_S, **each)
        for each in asked
    ]
    assert {(each.code().name, each.details()) for each in begun} == {("OK", "")}
    assert node.mounts() == []


def test_one_target_asked_for_at_once_is_published_once(
    driver: Driver, node: Node
) -> None:
    node.create("raced")
    target = driver.target("raced")
    calls = [
        driver.begin("NodePublishVolume", **published("raced", target))
        for _ in range(8)
    ]
    assert {each.code().name for each in calls} <= {"OK", "ABORTED"}
    assert node.mount_points().count(str(target)) == 1
    assert node.references("raced") == (0, 1)
    driver.unpublish("raced", target)


def test_two_volumes_asked_for_at_one_target_are_never_both_there(
    driver: Driver, node: Node
) -> None:
    """Nor is one of them there that nobody knows of."""
    names = ("either", "or")
    for each in names:
        node.create(each)
    for number in range(RACES):
        target = driver.target(f"contended-{number}")
        calls = [
            driver.begin("NodePublishVolume", **published(each, target))
            for each in names
        ]
        codes = sorted(each.code().name for each in calls)
        assert codes == ["ALREADY_EXISTS", "OK"]
        assert node.mount_points().count(str(target)) == 1
        known = [node.get(each)["Status"].get("published", []) for each in names]
        assert [each["target"] for shown in known for each in shown] == [str(target)]
        for each in names:
            driver.unpublish(each, target)
        assert not driver.is_bound(target)
