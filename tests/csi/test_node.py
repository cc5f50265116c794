"""NodePublish and NodeUnpublish: the whole life, each step twice, what is refused."""

from __future__ import annotations

from tests.protocol.node import Node
from tests.support.csi import Driver


def test_a_volume_is_at_its_target_and_goes(driver: Driver, node: Node) -> None:
    node.create("life")
    target = driver.target("life")
    driver.publish("life", target)
    driver.publish("life", target)
    (driver.inside(target) / "file").write_text("kept")
    assert driver.is_bound(target)
    driver.unpublish("life", target)
    assert not driver.is_bound(target)
    assert not driver.inside(target).exists()
    assert node.mounts() == []
    driver.unpublish("life", target)
    driver.publish("life", target)
    assert (driver.inside(target) / "file").read_text() == "kept"
    driver.unpublish("life", target)
