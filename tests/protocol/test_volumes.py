"""What a call means for the next: repeats, differences, ids that come twice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from plugin import limits
from tests.protocol.node import Node

pytestmark = pytest.mark.xdist_group("protocol-volumes")


def test_create_repeated_with_the_same_options_succeeds(node: Node) -> None:
    volume_id = node.create("same", mode="0750", interval="10s")
    # Another spelling of the same values is the same volume.
    node.ok("Create", Name="same", Opts={"MODE": "750", "interval": "10000ms"})
    assert node.get("same")["Status"]["id"] == volume_id
    assert node.stored() == [volume_id]
    node.ok("Remove", Name="same")


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"mode": "0700"}, "mode is 0750, asked for 0700"),
        ({}, "mode is 0750, asked for not set"),
        ({"mode": "0750", "uid": "7"}, "uid is not set, asked for 7"),
    ],
)
def test_create_with_other_options_names_the_difference(
    node: Node, options: dict[str, str], difference: str
) -> None:
    volume_id = node.create("other", mode="0750")
    error = node.refused("Create", Name="other", Opts=options)
    assert error.startswith("volume-exists: ")
    assert difference in error
    assert node.get("other")["Status"]["options"]["mode"] == "0750"
    assert node.get("other")["Status"]["options"]["uid"] == "0"
    assert node.stored() == [volume_id]
    node.ok("Remove", Name="other")


def test_remove_and_unmount_of_the_unknown_succeed(node: Node) -> None:
    node.ok("Remove", Name="never-was")
    node.ok("Unmount", Name="never-was", ID="a")
    node.create("idle")
    node.ok("Unmount", Name="idle", ID="never-mounted")
    assert node.references("idle") == (0, 0)
    node.ok("Remove", Name="idle")
    node.ok("Remove", Name="idle")


def test_a_removed_volumes_bytes_do_not_come_back(node: Node) -> None:
    first = node.create("again")
    mountpoint = node.ok("Mount", Name="again", ID="a")["Mountpoint"]
    node.path(mountpoint).joinpath("secret").write_text("old")
    node.ok("Unmount", Name="again", ID="a")
    node.ok("Remove", Name="again")
    assert node.create("again") != first
    mountpoint = node.ok("Mount", Name="again", ID="a")["Mountpoint"]
    assert list(node.path(mountpoint).iterdir()) == []
    node.ok("Unmount", Name="again", ID="a")
    node.ok("Remove", Name="again")


def test_a_mount_id_counts_each_time_it_comes(node: Node) -> None:
    """`docker cp` mounts and unmounts with the running container's own id."""
    volume_id = node.create("cp")
    for _ in range(2):
        node.ok("Mount", Name="cp", ID="A")
    node.ok("Unmount", Name="cp", ID="A")
    assert node.mounts() == [volume_id]
    assert node.references("cp") == (1, 0)
    node.ok("Unmount", Name="cp", ID="A")
    assert node.mounts() == []
    assert node.mount_directories() == []
    node.ok("Remove", Name="cp")


def test_an_unmount_takes_nothing_from_another_id(node: Node) -> None:
    volume_id = node.create("two")
    node.ok("Mount", Name="two", ID="A")
    node.ok("Mount", Name="two", ID="B")
    for _ in range(3):
        node.ok("Unmount", Name="two", ID="A")
    assert node.references("two") == (1, 0)
    assert node.mounts() == [volume_id]
    node.ok("Unmount", Name="two", ID="B")
    assert node.mounts() == []
    node.ok("Remove", Name="two")


def test_a_mounted_volume_is_not_removed(node: Node) -> None:
    volume_id = node.create("used")
    mountpoint = node.path(node.ok("Mount", Name="used", ID="A")["Mountpoint"])
    (mountpoint / "data").write_text("kept")
    error = node.refused("Remove", Name="used")
    assert error.startswith("volume-busy: ")
    assert (mountpoint / "data").read_text() == "kept"
    assert node.get("used")["Status"]["phase"] == "ready"
    node.ok("Unmount", Name="used", ID="A")
    node.ok("Remove", Name="used")
    assert volume_id not in node.stored()


def test_bytes_outlive_the_mount(node: Node) -> None:
    node.create("data")
    for expected in ("", "x", "xx"):
        mounted = node.path(node.ok("Mount", Name="data", ID="A")["Mountpoint"])
        file = mounted / "file"
        assert (file.read_text() if file.exists() else "") == expected
        file.write_text(f"{expected}x")
        node.ok("Unmount", Name="data", ID="A")
    node.ok("Remove", Name="data")


def test_parallel_creates_of_one_name_make_one_volume(node: Node) -> None:
    with ThreadPoolExecutor(20) as threads:
        body = {"Name": "race", "Opts": None}
        answers = list(threads.map(lambda _: node.call("Create", body), range(20)))
    assert [each.error for each in answers] == [""] * 20
    assert node.stored() == [node.get("race")["Status"]["id"]]
    node.ok("Remove", Name="race")


def test_parallel_mounts_are_each_counted(node: Node) -> None:
    volume_id = node.create("many")
    with ThreadPoolExecutor(20) as threads:

        def all_of(operation: str) -> set[str]:
            bodies = [{"Name": "many", "ID": f"id{number}"} for number in range(40)]
            answers = threads.map(lambda body: node.call(operation, body), bodies)
            return {each.error for each in answers}

        assert all_of("Mount") == {""}
        assert node.references("many") == (40, 0)
        assert node.mounts() == [volume_id]
        assert all_of("Unmount") == {""}
    assert node.references("many") == (0, 0)
    assert node.mounts() == []
    node.ok("Remove", Name="many")


def test_what_an_engine_starts_at_once_is_mounted(node: Node) -> None:
    """More than there are places; each waits for its turn, and so at the stop."""
    names = [f"storm{number}" for number in range(2 * limits.OPERATIONS_MAX)]
    with ThreadPoolExecutor(len(names)) as threads:
        for operation in ("Create", "Mount", "Unmount", "Remove"):
            bodies = [
                {"Name": name, "ID": "a"} if "ount" in operation else {"Name": name}
                for name in names
            ]
            answers = threads.map(node.call, [operation] * len(names), bodies)
            assert {each.error for each in answers} == {""}
