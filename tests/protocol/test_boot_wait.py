"""
After the machine's start a Mount waits for what does not answer yet.

The daemon runs in a time namespace in which the machine has just booted.
"""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.protocol.node import Node, running, wait_until
from tests.support.just_booted import just_booted

ERROR = "its disk is not mounted"
MOUNT_DEADLINE_S = 13.0


@pytest.fixture
def node() -> Iterator[Node]:
    """Yield a node without its pool's disk, just booted; it knows a volume `v`."""
    with running(boot_wait_s=300, mount_deadline_s=MOUNT_DEADLINE_S) as node:
        assert node.call("Create", {"Name": "v"}).json() == {}
        node.stop()
        away(node).rename(away(node).with_suffix(".away"))
        just_booted(node)
        node.start()
        yield node


def away(node: Node) -> Path:
    return Path(node.pool) / "pool.json"


def come(node: Node) -> None:
    away(node).with_suffix(".away").rename(away(node))


def mount(node: Node) -> dict[str, str]:
    answer: dict[str, str] = node.call("Mount", {"Name": "v", "ID": "id"}).json()
    return answer


@contextmanager
def mounting(node: Node) -> Iterator[Future[dict[str, str]]]:
    """Yield a Mount that waits."""
    with ThreadPoolExecutor(1) as pool:
        begun = pool.submit(mount, node)
        wait_until(lambda: "waits for an answer" in node.log_tail(), "the Mount waits")
        yield begun


def test_a_mount_waits_for_the_pools_disk(node: Node) -> None:
    with mounting(node) as begun:
        # Meanwhile all else is answered at once.
        assert node.call("Get", {"Name": "v"}).json()["Volume"]
        assert len(node.call("List").json()["Volumes"]) == 1
        assert ERROR in node.call("Create", {"Name": "new"}).json()["Err"]
        assert not begun.done()
        come(node)
        assert Path(begun.result(10)["Mountpoint"]).name in node.mounts()
    assert node.call("Unmount", {"Name": "v", "ID": "id"}).json() == {}


def test_what_was_answered_is_not_waited_for(node: Node) -> None:
    come(node)
    written = Path(mount(node)["Mountpoint"]) / "file"
    node.path(written).write_text("rows")
    assert node.call("Unmount", {"Name": "v", "ID": "id"}).json() == {}
    [volume_id] = node.stored()
    shutil.rmtree(node.path(node.pool / "volumes" / volume_id))
    began_s = time.monotonic()
    assert "is missing" in mount(node)["Err"]
    assert time.monotonic() - began_s < 3


def test_a_mount_waits_no_longer_than_the_engine(node: Node) -> None:
    began_s = time.monotonic()
    assert ERROR in mount(node)["Err"]
    assert MOUNT_DEADLINE_S / 4 < time.monotonic() - began_s < MOUNT_DEADLINE_S


def test_a_stop_ends_the_wait(node: Node) -> None:
    with mounting(node) as begun:
        began_s = time.monotonic()
        assert node.stop(signal.SIGTERM) == 0
        assert time.monotonic() - began_s < 8
        assert ERROR in begun.result(1)["Err"]


def test_long_after_the_start_a_mount_fails_at_once(node: Node) -> None:
    node.stop()
    del node.remora  # in the end the machine is up for as long as it is
    node.start()
    began_s = time.monotonic()
    assert ERROR in mount(node)["Err"]
    assert time.monotonic() - began_s < 5
