"""NodePublish and NodeUnpublish: the whole life, each step twice, what is refused."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.protocol.node import Node, wait_until
from tests.support.csi import (
    ANY_WRITER,
    MANY_WRITERS,
    ONE_WRITER,
    WRITER,
    Driver,
    mount,
    published,
)
from tests.support.hung_disk import hung

# They share a node and its driver.
pytestmark = pytest.mark.xdist_group("csi-node")
POD = {
    "csi.storage.k8s.io/pod.namespace": "shop",
    "csi.storage.k8s.io/pod.name": "db-0",
    "csi.storage.k8s.io/ephemeral": "false",
    "claim": "shop/data",
}


def test_a_volume_is_at_its_target_and_goes(driver: Driver, node: Node) -> None:
    node.create("life")
    target = driver.target("life")
    driver.publish("life", target)
    driver.publish("life", target)
    assert node.references("life") == (0, 1)
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


def publishing(driver: Driver, **changes: Any) -> dict[str, Any]:
    return {**published("checked", driver.target("checked")), **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"volume_id": ""},
        {"target_path": ""},
        {"volume_capability": None},
        {"volume_capability": {"block": {}, "access_mode": {"mode": 1}}},
        {"volume_capability": {"access_mode": {"mode": 1}}},
        {"volume_capability": {"mount": {}, "access_mode": {"mode": 99}}},
        {"volume_capability": mount(WRITER, "noatime")},
        {"volume_capability": mount(3)},
        {"target_path": "relative/path"},
        {"target_path": "/etc/remora"},
        {"volume_context": {"csi.storage.k8s.io/ephemeral": "true"}},
    ],
)
def test_what_can_never_be_published(
    driver: Driver, node: Node, changes: dict[str, Any]
) -> None:
    node.create("checked")
    asked = publishing(driver, **changes)
    assert driver.refused("NodePublishVolume", **asked)[0] == "INVALID_ARGUMENT"
    assert node.references("checked") == (0, 0)


def test_a_target_outside_of_the_roots_is_refused(driver: Driver, node: Node) -> None:
    node.create("outside")
    root = driver.root
    long = f"{root}/{'x' * 1024}"
    dotted = (f"{root}/../x", f"{root}//x", f"{root}/./x")
    for path in (*dotted, str(root), f"{root}x", long):
        asked = published("outside", Path("/")) | {"target_path": path}
        assert driver.refused("NodePublishVolume", **asked)[0] == "INVALID_ARGUMENT"


def test_no_link_leads_anywhere_else(driver: Driver, node: Node) -> None:
    """What a pod has planted in its own directory is not followed."""
    node.create("planted")
    elsewhere = node.directory / "elsewhere"
    elsewhere.mkdir()
    target = driver.target("planted")
    target.symlink_to(elsewhere)
    asked = published("planted", target)
    assert driver.refused("NodePublishVolume", **asked)[0] == "INVALID_ARGUMENT"
    target.unlink()
    (driver.targets / "linked").symlink_to(elsewhere)
    asked = published("planted", driver.targets / "linked/mount")
    assert driver.refused("NodePublishVolume", **asked)[0] == "NOT_FOUND"
    assert list(elsewhere.iterdir()) == []
    assert node.references("planted") == (0, 0)


def test_a_directory_with_something_in_it_is_not_hidden(
    driver: Driver, node: Node
) -> None:
    node.create("hidden")
    target = driver.target("hidden")
    target.mkdir()
    (target / "file").write_text("somebody's")
    code, text = driver.refused("NodePublishVolume", **published("hidden", target))
    assert (code, "something in it" in text) == ("INVALID_ARGUMENT", True)
    assert (target / "file").read_text() == "somebody's"
    (target / "file").unlink()
    driver.publish("hidden", target)
    driver.unpublish("hidden", target)


@pytest.mark.parametrize("method", ["NodeUnpublishVolume", "NodeGetVolumeStats"])
def test_what_is_missing_is_told(driver: Driver, method: str) -> None:
    path = "volume_path" if method == "NodeGetVolumeStats" else "target_path"
    for fields in ({"volume_id": "x"}, {path: str(driver.targets / "x")}):
        assert driver.refused(method, **fields)[0] == "INVALID_ARGUMENT"


def test_what_is_not_there_is_not_found(driver: Driver, node: Node) -> None:
    node.create("there")
    target = driver.target("there")
    not_found = [
        ("NodePublishVolume", published("nobody", target)),
        ("NodePublishVolume", published("there", driver.targets / "no/such/place")),
        ("NodeGetVolumeStats", {"volume_id": "nobody", "volume_path": str(target)}),
        ("NodeGetVolumeStats", {"volume_id": "there", "volume_path": str(target)}),
        ("NodeExpandVolume", {"volume_id": "nobody", "volume_path": str(target)}),
        ("NodeExpandVolume", {"volume_id": "there", "volume_path": str(target)}),
    ]
    for method, fields in not_found:
        assert driver.refused(method, **fields)[0] == "NOT_FOUND", (method, fields)


def test_what_nobody_knows_is_unpublished(driver: Driver, node: Node) -> None:
    driver.unpublish("nobody", driver.target("nobody"))
    driver.unpublish("nobody", driver.targets / "no/such/place")
    driver.unpublish("no/name", driver.target("nobody"))
    node.create("elsewhere")
    left = driver.target("elsewhere")
    left.mkdir()
    driver.unpublish("elsewhere", left)
    assert not left.exists()


def test_a_mount_that_was_left_is_taken_away(driver: Driver, node: Node) -> None:
    """The daemon's memory of it may be gone; the kernel's is not."""
    node.create("left")
    target = driver.target("left")
    target.mkdir()
    mounted = node.ok("Mount", Name="left", ID="engine")["Mountpoint"]
    for _ in range(2):
        node.run("mount", "--bind", mounted, str(target))
    driver.unpublish("left", target)
    assert not driver.is_bound(target)
    assert not driver.inside(target).exists()
    node.ok("Unmount", Name="left", ID="engine")


def test_a_target_shows_one_volume_in_one_way(driver: Driver, node: Node) -> None:
    for name in ("one", "two"):
        node.create(name)
    target = driver.target("one")
    driver.publish("one", target)
    for asked in (
        published("two", target),
        published("one", target) | {"readonly": True},
    ):
        assert driver.refused("NodePublishVolume", **asked)[0] == "ALREADY_EXISTS"
    # A kubelet that was updated says 7 where it has said 1.
    driver.publish("one", target, MANY_WRITERS)
    assert driver.refused("NodePublishVolume", **published("one", target, ANY_WRITER))[
        0
    ] == ("ALREADY_EXISTS")
    driver.unpublish("one", target)


@pytest.mark.parametrize("modes", [(6, 6), (6, 7), (7, 6)])
def test_one_writer_is_at_one_target(
    driver: Driver, node: Node, modes: tuple[int, int]
) -> None:
    name = "-".join(map(str, ("alone", *modes)))
    node.create(name)
    first, second = driver.target(f"{name}-a"), driver.target(f"{name}-b")
    driver.publish(name, first, modes[0])
    driver.publish(name, first, modes[0])
    code, text = driver.refused(
        "NodePublishVolume", **published(name, second, modes[1])
    )
    assert (code, str(first) in text) == ("FAILED_PRECONDITION", True)
    driver.unpublish(name, first)
    driver.publish(name, second, ONE_WRITER)
    driver.unpublish(name, second)


def test_many_writers_are_at_many_targets(driver: Driver, node: Node) -> None:
    node.create("shared")
    targets = [driver.target(f"shared-{each}") for each in range(3)]
    for each in targets:
        driver.publish("shared", each, MANY_WRITERS)
    (driver.inside(targets[0]) / "file").write_text("seen")
    assert (driver.inside(targets[2]) / "file").read_text() == "seen"
    for each in targets[:2]:
        driver.unpublish("shared", each)
    assert node.mounts()
    driver.unpublish("shared", targets[2])
    assert node.references("shared") == (0, 0)


def test_who_may_only_read_writes_nothing(driver: Driver, node: Node) -> None:
    node.create("read")
    target, beside = driver.target("read"), driver.target("read-beside")
    driver.call("NodePublishVolume", **published("read", target), readonly=True)
    driver.call("NodePublishVolume", **published("read", target), readonly=True)
    driver.publish("read", beside)
    (driver.inside(beside) / "file").write_text("told")
    assert (driver.inside(target) / "file").read_text() == "told"
    with pytest.raises(OSError, match="Read-only"):
        (driver.inside(target) / "other").write_text("refused")
    for each in (target, beside):
        driver.unpublish("read", each)


def test_a_target_in_use_stays_and_is_asked_for_again(
    driver: Driver, node: Node
) -> None:
    node.create("busy")
    target = driver.target("busy")
    driver.publish("busy", target)
    user = node.popen(["sh", "-c", f"cd {target} && exec sleep 100"])
    working = Path(f"/proc/{user.pid}/cwd")
    wait_until(lambda: str(working.readlink()) == str(target), "it works there")
    asked = {"volume_id": "busy", "target_path": str(target)}
    assert driver.refused("NodeUnpublishVolume", **asked)[0] == "ABORTED"
    assert driver.is_bound(target)
    user.kill()
    user.wait()
    driver.unpublish("busy", target)


def test_people_see_who_has_a_volume(driver: Driver, node: Node) -> None:
    node.create("seen")
    target = driver.targets / "per-alloc/5c1f0a2e-1b0e-4b1e-9b7e-0a1b2c3d4e5f/seen/rw"
    target.parent.mkdir(parents=True)
    driver.call("NodePublishVolume", **published("seen", target), volume_context=POD)
    shown = json.loads(
        node.run("env", *env(node), *node.remora("inspect", "seen", "--json"))
    )
    assert shown["published"] == [
        {
            "target": str(target),
            "access": "read-write",
            "pod": "shop/db-0",
            "claim": "shop/data",
            "alloc": "5c1f0a2e-1b0e-4b1e-9b7e-0a1b2c3d4e5f",
        }
    ]
    assert "pod shop/db-0" in node.run("env", *env(node), *node.remora("ls"))
    driver.unpublish("seen", target)


def env(node: Node) -> list[str]:
    return [f"{key}={text}" for key, text in node.environment().items()]


def test_statistics_are_those_of_the_volume(driver: Driver, node: Node) -> None:
    node.create("counted")
    target = driver.target("counted")
    driver.publish("counted", target)
    asked = {"volume_id": "counted", "volume_path": str(target)}
    stats = driver.call("NodeGetVolumeStats", **asked)
    by_unit = {each.unit: each for each in stats.usage}
    assert {*by_unit} == {1, 2}
    assert by_unit[1].total >= by_unit[1].used > 0
    assert not stats.volume_condition.abnormal
    # Nothing is limited here, and so nothing is to be done.
    driver.call("NodeExpandVolume", **asked)
    driver.unpublish("counted", target)


def test_only_what_is_at_the_target_is_taken_away(driver: Driver, node: Node) -> None:
    for each in ("mine", "yours"):
        node.create(each)
    target, foreign = driver.target("mine"), driver.target("foreign")
    driver.publish("mine", target)
    driver.unpublish("yours", target)
    assert driver.is_bound(target)
    driver.unpublish("mine", target)
    # What another driver has there stays.
    foreign.mkdir()
    node.run("mount", "-t", "tmpfs", "other", str(foreign))
    for each in ("mine", "unknown", "no/name", "x" * 300):
        asked = {"volume_id": each, "target_path": str(foreign)}
        code, text = driver.refused("NodeUnpublishVolume", **asked)
        assert (code, str(foreign) in text) == ("INVALID_ARGUMENT", True)
        assert driver.is_bound(foreign)
        gone = {"volume_id": each, "target_path": str(target)}
        driver.call("NodeUnpublishVolume", **gone)
    node.run("umount", str(foreign))


def test_storage_that_hangs_is_not_asked_for_what_is_there(
    driver: Driver, node: Node
) -> None:
    """A dead NFS server; its mount is tried again after a kubelet's restart."""
    node.create("silent")
    target = driver.target("silent")
    driver.publish("silent", target)
    with hung(node, target):
        assert (
            driver.code("NodePublishVolume", **published("silent", target))
            == "INVALID_ARGUMENT"
        )
        driver.unpublish("silent", target)
    assert not driver.is_bound(target)


def test_secrets_are_in_no_log(driver: Driver, node: Node) -> None:
    node.create("secret")
    word = f"hush-{threading.get_ident()}"
    target = driver.target("secret")
    secrets = {"secrets": {"key": word}}
    driver.call("NodePublishVolume", **published("secret", target), **secrets)
    wrong = {"name": "secret", "volume_capabilities": [mount(3)]}
    assert driver.code("CreateVolume", **wrong, **secrets) == "INVALID_ARGUMENT"
    driver.unpublish("secret", target)
    assert word not in node.log.read_text()
    assert '"op": "NodePublishVolume"' in node.log.read_text()
