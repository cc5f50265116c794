"""
Mounts of which the engine may have forgotten: after its restart or after ours.

A volume that only such mounts hold is unmounted on proof of disuse alone; another
mount namespace that has it, as a container's does, proves the contrary.
"""

from __future__ import annotations

import sqlite3
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.protocol import client
from tests.protocol.node import UNSHARE, Node, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

# The reconciler looks every 10 s; twice that, and some, is surely after a look.
LOOKED_S = 25.0


def activate(node: Node) -> None:
    """Call what an engine calls once in its life."""
    client.parse(node.send(client.engine_request("Plugin.Activate", b"")))


def occupy(node: Node, name: str) -> tuple[subprocess.Popen[bytes], str]:
    """Return a process whose own mount namespace has volume *name*, and where."""
    elsewhere = node.directory / f"elsewhere-{name}"
    elsewhere.mkdir()
    target = node.mount_dir / node.get(name)["Status"]["id"]
    script = 'mount --bind "$1" "$2" && umount "$1" && echo in && read -r _'
    user = subprocess.Popen(
        node.inside(*UNSHARE, "sh", "-c", script, "sh", str(target), str(elsewhere)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert user.stdout.readline() == b"in\n"
    return user, str(elsewhere)


def end(user: subprocess.Popen[bytes]) -> None:
    user.kill()
    user.wait(timeout=10)
    user.stdin.close()
    user.stdout.close()


@pytest.mark.xdist_group("protocol-epochs")
def test_lost_unmounts_end_with_disuse_and_only_with_it(
    make_node: Callable[..., Node],
) -> None:
    # Enough for what is looked at before it is over, on a busy machine as well.
    node = make_node(disuse_grace_s=3)
    node.start()
    ids = {name: node.create(name) for name in ("lost", "held", "returned")}
    for name in ids:
        node.ok("Mount", Name=name, ID="A")
    user, where = occupy(node, "held")
    try:
        node.kill()
        assert node.mounts() == sorted(ids.values())
        node.start()
        assert node.references("returned") == (0, 1)

        # The engine still knew of this one.
        node.ok("Unmount", Name="returned", ID="A")
        assert node.mounts() == sorted([ids["lost"], ids["held"]])
        assert node.references("returned") == (0, 0)

        wait_until(
            lambda: (
                node.mounts() == [ids["held"]] and node.references("lost") == (0, 0)
            ),
            "the lost mount is dropped and forgotten, the held one kept",
            timeout_s=LOOKED_S,
        )
        assert node.references("held") == (0, 1)
        assert node.mount_directories() == [ids["held"]]

        error = node.refused("Remove", Name="held")
        assert error.startswith("volume-busy: ")
        assert f"sh (pid {user.pid}) at {where}" in error
        assert node.mounts() == [ids["held"]]
        # Its container stops: now the Unmount that the engine sends is the last.
        end(user)
        node.ok("Unmount", Name="held", ID="A")
        assert node.mounts() == []
    finally:
        end(user)
    for name in ids:
        node.ok("Remove", Name=name)
    assert node.stored() == []


pytest_group = pytest.mark.xdist_group("protocol-volumes")


@pytest_group
def test_remove_asks_for_users_at_once(node: Node) -> None:
    """No grace: dockerd forgot the volume while its container went on."""
    node.create("asked")
    node.ok("Mount", Name="asked", ID="A")
    activate(node)
    user, where = occupy(node, "asked")
    try:
        assert where in node.refused("Remove", Name="asked")
    finally:
        end(user)
    node.ok("Remove", Name="asked")
    assert node.mounts() == []


@pytest_group
def test_an_unmount_does_not_unmount_what_a_container_uses(node: Node) -> None:
    """After a `docker cp` that failed, dockerd sends the container's own Unmount."""
    volume_id = node.create("stray")
    node.ok("Mount", Name="stray", ID="A")
    user, where = occupy(node, "stray")
    try:
        node.ok("Unmount", Name="stray", ID="A")
        assert node.references("stray") == (0, 1)
        assert volume_id in node.mounts()
        assert where in node.refused("Remove", Name="stray")
        assert node.get("stray")["Status"]["phase"] == "ready"
    finally:
        end(user)
    node.ok("Remove", Name="stray")
    assert volume_id not in node.mounts()


@pytest_group
def test_activation_makes_live_mounts_inherited(node: Node) -> None:
    volume_id = node.create("epoch")
    node.ok("Mount", Name="epoch", ID="A")
    node.ok("Mount", Name="epoch", ID="B")
    assert node.references("epoch") == (2, 0)
    activate(node)
    assert node.references("epoch") == (0, 2)
    # dockerd was killed and starts the container again with the id it had.
    node.ok("Mount", Name="epoch", ID="A")
    assert node.references("epoch") == (1, 2)
    # Its Unmount takes the new count, not an inherited one, and proves nothing yet.
    node.ok("Unmount", Name="epoch", ID="A")
    assert node.references("epoch") == (0, 2)
    assert node.mounts() == [volume_id]
    for mount_id in ("A", "B"):
        node.ok("Unmount", Name="epoch", ID=mount_id)
    assert node.mounts() == []
    node.ok("Remove", Name="epoch")


@pytest_group
def test_a_volume_that_one_live_mount_holds_is_not_removed_in_any_epoch(
    node: Node,
) -> None:
    volume_id = node.create("again")
    node.ok("Mount", Name="again", ID="A")
    activate(node)
    node.ok("Mount", Name="again", ID="A")
    assert "holds 1 mount of" in node.refused("Remove", Name="again")
    node.ok("Unmount", Name="again", ID="A")
    # What is left is inherited, and nobody has it: removal needs no grace.
    node.ok("Remove", Name="again")
    assert volume_id not in node.mounts()


@pytest.mark.xdist_group("protocol-epochs")
def test_mounts_survive_our_crash_and_are_taken_over(
    make_node: Callable[..., Node],
) -> None:
    node = make_node()
    node.start()
    volume_id = node.create("kept")
    mountpoint = node.ok("Mount", Name="kept", ID="A")["Mountpoint"]
    node.path(mountpoint).joinpath("file").write_text("bytes")
    for _ in range(2):
        node.kill()
        assert node.path(mountpoint).joinpath("file").read_text() == "bytes"
        node.start()
        assert node.get("kept")["Mountpoint"] == mountpoint
        assert node.ok("Mount", Name="kept", ID="A")["Mountpoint"] == mountpoint
        assert node.mounts() == [volume_id], "a second mount was stacked on the first"
    assert node.references("kept") == (1, 2)
    for _ in range(3):
        assert node.mounts() == [volume_id]
        node.ok("Unmount", Name="kept", ID="A")
    assert node.mounts() == []
    # An orderly stop leaves mounts alone as well: containers go on without us.
    node.ok("Mount", Name="kept", ID="B")
    assert node.stop() == 0
    assert node.mounts() == [volume_id]
    node.start()
    node.ok("Unmount", Name="kept", ID="B")
    assert node.mounts() == []


@pytest.mark.xdist_group("protocol-epochs")
def test_a_reboot_ends_every_reference(make_node: Callable[..., Node]) -> None:
    node = make_node()
    node.start()
    volume_id = node.create("boot")
    node.ok("Mount", Name="boot", ID="A")
    node.stop()
    # What a reboot leaves: the files, another boot's identity, and no mounts.
    node.run("umount", str(node.mount_dir / volume_id))
    database = sqlite3.connect(node.state_dir / "node.db")
    database.execute("UPDATE facts SET value = 'earlier' WHERE key = 'boot_id'")
    database.commit()
    database.close()
    node.start()
    assert node.references("boot") == (0, 0)
    assert node.ok("Mount", Name="boot", ID="A")
    assert node.mounts() == [volume_id]
    node.ok("Unmount", Name="boot", ID="A")
    assert node.mount_directories() == []
