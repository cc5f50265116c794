"""
Storage that hangs: pool and mount points lie on a filesystem that is frozen.

Every write to it waits in the kernel, as with a disk that does not answer. Reads go
on, so a volume that is mounted already can be mounted once more meanwhile.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.protocol import client
from tests.protocol.node import Node, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.xdist_group("protocol-storage")

# plugin.limits.OPERATIONS_MAX; written out, since users are promised it.
OPERATIONS_MAX = 48
# plugin.limits.LONG_CALLS_MAX, likewise.
COPIES_MAX = 8
PROMPT_S = 5.0


@pytest.fixture
def node(make_node: Callable[..., Node]) -> Iterator[Node]:
    """Return a node whose storage can be frozen; Mounts give up after 4 s."""
    node = make_node(disk=True, mount_deadline_s=4.0)
    node.start()
    yield node
    node.thaw()


def settled(node: Node) -> bool:
    """Return whether nothing is under way any more."""
    return not node.control("GET", "/v1/status").json()["operations"]


def in_background(
    threads: ThreadPoolExecutor, node: Node, operation: str, name: str
) -> Future[client.Answer]:
    """Return the answer to come of a call that storage keeps waiting."""
    body = {"Name": name, "ID": "a"}
    answer = threads.submit(node.call, operation, body, timeout_s=60)
    wait_until(
        lambda: name in node.control("GET", "/v1/status").json()["operations"],
        f"{operation} of {name} is under way",
    )
    node.wait_blocked()
    assert not answer.done()
    return answer


def test_hung_mounts_delay_no_other_call_and_are_undone(node: Node) -> None:
    up_id = node.create("up")
    node.ok("Mount", Name="up", ID="a")
    hung = [f"hung{number}" for number in range(OPERATIONS_MAX + 6)]
    for name in hung:
        node.ok("Create", Name=name)
    node.freeze()
    with ThreadPoolExecutor(len(hung)) as threads:
        began_s = time.monotonic()
        answers = [
            threads.submit(node.call, "Mount", {"Name": name, "ID": "a"})
            for name in hung
        ]
        wait_until(
            lambda: (
                len(node.control("GET", "/v1/status").json()["operations"])
                == OPERATIONS_MAX
            ),
            "as many as there is room for are under way, and six wait",
        )
        for _ in range(5):
            assert len(node.names()) == len(hung) + 1
            assert node.get("hung0")["Name"] == "hung0"
            assert node.ok("Path", Name="up")["Mountpoint"]
        assert time.monotonic() - began_s < PROMPT_S
        errors = sorted(each.result().error for each in answers)
    assert [error.partition(":")[0] for error in errors] == [
        *["deadline"] * OPERATIONS_MAX,
        *["volume-busy"] * 6,
    ]
    assert "is being undone" in errors[0]
    assert f"{OPERATIONS_MAX} operations are under way" in errors[-1]
    # The deadline is over for the callers; storage still holds what was begun.
    assert not settled(node)
    node.thaw()
    wait_until(lambda: settled(node), "the Mounts are undone")
    assert node.mounts() == [up_id]
    assert node.mount_directories() == [up_id]
    assert {node.references(name) for name in hung} == {(0, 0)}
    assert node.references("up") == (1, 0)
    for name in hung[:3]:
        node.ok("Mount", Name=name, ID="b")


def test_a_hung_volume_does_not_delay_another(node: Node) -> None:
    volume_id = node.create("quick")
    node.create("slow")
    node.ok("Mount", Name="quick", ID="a")
    node.freeze()
    with ThreadPoolExecutor(1) as threads:
        slow = in_background(threads, node, "Mount", "slow")
        for _ in range(5):
            node.ok("Mount", Name="quick", ID="b")
            node.ok("Unmount", Name="quick", ID="b")
        assert "holds 1 mount of" in node.refused("Remove", Name="quick")
        assert not slow.done(), "the others took longer than the deadline"
        assert slow.result().error.startswith("deadline: 'slow' was not done in 4 s")
    node.thaw()
    wait_until(lambda: settled(node), "the Mount is undone")
    assert node.mounts() == [volume_id]


def test_calls_on_the_hung_volume_itself_are_bounded(node: Node) -> None:
    node.create("slow")
    node.freeze()
    with ThreadPoolExecutor(2) as threads:
        first = in_background(threads, node, "Mount", "slow")
        unmount = threads.submit(node.call, "Unmount", {"Name": "slow", "ID": "a"})
        assert first.result().error.startswith("deadline: ")
        busy = unmount.result().error
        assert busy.startswith(("deadline: ", "volume-busy: another operation"))
    # Get still knows it: an answer "not found" would lose its references.
    assert node.get("slow")["Name"] == "slow"
    node.thaw()
    wait_until(lambda: settled(node), "the Mount is undone")
    assert node.mounts() == []
    assert node.references("slow") == (0, 0)


def test_storage_that_wakes_in_time_is_no_error(node: Node) -> None:
    volume_id = node.create("late")
    node.freeze()
    with ThreadPoolExecutor(1) as threads:
        answer = in_background(threads, node, "Mount", "late")
        node.thaw()
        assert answer.result().json() == {"Mountpoint": str(node.mount_dir / volume_id)}
    assert node.mounts() == [volume_id]
    assert node.references("late") == (1, 0)


@pytest.mark.parametrize("operation", ["Create", "Mount"])
def test_what_a_caller_no_longer_waits_for_is_undone(
    node: Node, operation: str
) -> None:
    """An engine that restarts, or gives up, hangs up without another word."""
    if operation == "Mount":
        node.create("gone")
    node.freeze()
    content = client.go_json({"Name": "gone", "ID": "a"})
    with client.connect(node.plugin_socket) as caller:
        caller.sendall(client.engine_request(f"VolumeDriver.{operation}", content))
        node.wait_blocked()
        assert "gone" in node.names() or operation == "Create"
    wait_until(
        lambda: any(
            each.get("op") == operation and each["code"] == "deadline"
            for each in node.log_lines()
        ),
        "the hang-up is noticed",
    )
    node.thaw()
    wait_until(lambda: settled(node), "it is undone")
    assert node.mounts() == []
    assert node.mount_directories() == []
    if operation == "Create":
        assert node.names() == []
        assert node.stored() == []
    else:
        assert node.references("gone") == (0, 0)


def test_an_unfinished_creation_is_seen_by_nobody(node: Node) -> None:
    node.freeze()
    with ThreadPoolExecutor(1) as threads:
        answer = in_background(threads, node, "Create", "early")
        assert node.names() == []
        assert node.refused("Get", Name="early").startswith("volume-not-found: ")
        node.thaw()
        assert answer.result().json() == {}
    assert node.names() == ["early"]


def test_a_crash_during_a_creation_leaves_nothing(node: Node) -> None:
    node.freeze()
    with client.connect(node.plugin_socket) as caller:
        body = client.go_json({"Name": "half", "Opts": None})
        caller.sendall(client.engine_request("VolumeDriver.Create", body))
        node.wait_blocked()
        node.process.kill()
        # A process that waits in the kernel ends when storage lets it go.
        node.thaw()
        assert node.wait_exit() == -9
    node.start()
    wait_until(lambda: not node.stored(), "the half-made directory is gone")
    assert node.names() == []
    assert node.create("half") in node.stored()


def test_a_crash_during_a_removal_is_finished_at_the_next_start(node: Node) -> None:
    node.create("half")
    node.freeze()
    with client.connect(node.plugin_socket) as caller:
        body = client.go_json({"Name": "half"})
        caller.sendall(client.engine_request("VolumeDriver.Remove", body))
        node.wait_blocked()
        assert node.get("half")["Status"]["phase"] == "removing"
        node.process.kill()
        node.thaw()
        node.wait_exit()
    node.start()
    wait_until(lambda: node.names() == [], "the volume is gone")
    assert node.stored() == []


def test_a_pool_whose_disk_is_not_mounted_is_not_an_empty_pool(node: Node) -> None:
    volume_id = node.create("there")
    # What the directory below the mount point looks like: no pool.json.
    hidden = node.path(node.pool).with_name("hidden")
    node.path(node.pool).rename(hidden)
    node.path(node.pool / "volumes").mkdir(parents=True)
    for call in ("Create", "Mount", "Remove"):
        name = "new" if call == "Create" else "there"
        error = node.refused(call, Name=name, ID="a")
        assert error.startswith("backend-failed: ")
        assert "has no pool.json" in error
    assert node.names() == ["there"]
    assert node.references("there") == (0, 0)
    # Who is told that a removal failed does not lose the bytes to it later.
    assert node.get("there")["Status"]["phase"] == "ready"
    assert node.stored() == []
    node.path(node.pool / "volumes").rmdir()
    node.path(node.pool).rmdir()
    hidden.rename(node.path(node.pool))
    node.ok("Mount", Name="there", ID="a")
    assert node.mounts() == [volume_id]


def test_copies_that_hang_leave_the_control_socket_to_short_calls(node: Node) -> None:
    node.create("source")
    node.freeze()
    names = [f"copy{number}" for number in range(COPIES_MAX)]
    with ThreadPoolExecutor(len(names)) as threads:
        answers = [
            threads.submit(
                node.control, "POST", "/v1/clone", {"name": name, "source": "source"}
            )
            for name in names
        ]
        wait_until(
            lambda: (
                set(names) <= {*node.control("GET", "/v1/status").json()["operations"]}
            ),
            "all copies are under way",
        )
        source = {"name": "more", "options": {"from": "source"}}
        for path, body in (
            ("/v1/clone", {"name": "more", "source": "source"}),
            ("/v1/import", {"name": "more", "source": str(node.directory)}),
            ("/v1/volumes", source),
            ("/v1/volumes/source/snapshots", {"snapshot": "more"}),
        ):
            error = node.control("POST", path, body).json()["error"]
            assert error["code"] == "volume-busy"
            assert error["cause"] == f"{COPIES_MAX} copies are being made already"
        rows = node.control("GET", "/v1/volumes").json()
        assert "source" in [each["name"] for each in rows]
        node.thaw()
        assert [each.result().json()["name"] for each in answers] == names
    assert sorted(node.names()) == [*names, "source"]
