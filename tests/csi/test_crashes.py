"""SIGKILL of the driver, or of the daemon, during any call; then the call again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc
import pytest

from tests.protocol.node import Node, running
from tests.support.csi import Driver, mount, published

WITHIN_S = 0.06
SIZE = 2**20


def kill_driver(_node: Node, driver: Driver) -> None:
    driver.kill()
    driver.start()


def kill_daemon(node: Node, _driver: Driver) -> None:
    node.kill()
    node.start()


def life(driver: Driver) -> list[tuple[str, dict[str, Any]]]:
    """Return the calls of a volume's whole life, in their order."""
    target = str(driver.target("life"))
    at = {"volume_id": "v", "volume_path": target}
    snapshot = {"name": "s", "source_volume_id": "v"}
    size = {"capacity_range": {"required_bytes": 2 * SIZE}}
    first = {"capacity_range": {"required_bytes": SIZE}}
    return [
        ("CreateVolume", {"name": "v", "volume_capabilities": [mount()], **first}),
        ("NodePublishVolume", published("v", driver.target("life"))),
        ("NodeGetVolumeStats", at),
        ("CreateSnapshot", snapshot),
        ("ControllerExpandVolume", {"volume_id": "v", **size}),
        ("NodeExpandVolume", at),
        ("NodeUnpublishVolume", {"volume_id": "v", "target_path": target}),
        ("DeleteSnapshot", {"snapshot_id": "v@s"}),
        ("DeleteVolume", {"volume_id": "v"}),
    ]


@pytest.mark.parametrize("kill", [kill_driver, kill_daemon])
def test_a_call_that_was_killed_is_made_again(
    kill: Callable[[Node, Driver], None], pytestconfig: pytest.Config
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    with running(disuse_grace_s=0) as node:
        driver = Driver(node)
        driver.start()
        for method, fields in life(driver):
            begun = driver.begin(method, **fields)
            time.sleep(chosen.uniform(0, WITHIN_S))
            kill(node, driver)
            with suppress(grpc.RpcError, grpc.FutureCancelledError):
                begun.result()
            driver.call_at_last(method, **fields)
            if method == "NodePublishVolume":
                (driver.inside(driver.target("life")) / "file").write_text("kept")
            if method == "ControllerExpandVolume":
                found = driver.call("ControllerGetVolume", volume_id="v").volume
                assert found.capacity_bytes == 2 * SIZE
                assert (driver.inside(driver.target("life")) / "file").exists()
        assert node.mounts() == []
        assert node.names() == []
        assert not driver.is_bound(driver.target("life"))


def test_what_is_published_outlives_driver_and_daemon() -> None:
    """A kubelet that was restarted publishes again; nothing is counted twice."""
    with running(disuse_grace_s=0) as node:
        driver = Driver(node)
        driver.start()
        node.create("v")
        target = driver.target("pod")
        driver.publish("v", target)
        driver.kill()
        node.kill()
        node.start()
        driver.start()
        for _ in range(20):  # passes of the reconciler, which must let it be
            assert node.references("v") == (0, 1)
            time.sleep(0.02)
        assert driver.is_bound(target)
        driver.publish("v", target)
        assert node.references("v") == (0, 1)
        assert node.mount_points().count(str(target)) == 1
        driver.unpublish("v", target)
        assert node.references("v") == (0, 0)
        assert node.mounts() == []
