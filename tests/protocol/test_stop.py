"""How the daemon ends, and what it leaves for the next one."""

from __future__ import annotations

import itertools
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.protocol import client
from tests.protocol.node import Node, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.xdist_group("protocol-stop")

# Without calls under way a stop takes 0.2 s; the time-out of a silent client is 15 s.
PROMPT_S = 8.0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_promptly_with_0(
    make_node: Callable[..., Node], number: int
) -> None:
    node = make_node()
    node.start()
    node.create("kept")
    began_s = time.monotonic()
    assert node.stop(number) == 0
    assert time.monotonic() - began_s < PROMPT_S
    # A dead socket would cost the engine 15 s at every volume command.
    assert not node.plugin_socket.exists()
    assert not node.control_socket.exists()
    assert node.log_lines()[-1]["event"] == "stopped"
    node.start()
    assert node.names() == ["kept"]


def test_silent_clients_do_not_delay_the_end(make_node: Callable[..., Node]) -> None:
    node = make_node()
    node.start()
    with ExitStack() as stack:
        for _ in range(300):
            silent = stack.enter_context(client.connect(node.plugin_socket))
            silent.sendall(b"POST /VolumeDriver.List")
        node.names()
        began_s = time.monotonic()
        assert node.stop() == 0
        assert time.monotonic() - began_s < PROMPT_S


def test_a_call_under_way_is_finished_first(make_node: Callable[..., Node]) -> None:
    node = make_node(disk=True)
    node.start()
    volume_id = node.create("moving")
    node.freeze()
    with ThreadPoolExecutor(1) as threads:
        body = {"Name": "moving", "ID": "a"}
        answer = threads.submit(node.call, "Mount", body, timeout_s=60)
        node.wait_blocked()
        node.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not node.plugin_socket.exists(), "the socket is unlinked")
        assert not node.control_socket.exists()
        # Nobody new is let in, and the Mount is not broken off.
        time.sleep(0.5)
        assert node.process.poll() is None
        assert not answer.done()
        node.thaw()
        mountpoint = str(node.mount_dir / volume_id)
        assert answer.result().json() == {"Mountpoint": mountpoint}
    assert node.wait_exit() == 0
    assert node.mounts() == [volume_id]
    node.start()
    assert node.references("moving") == (0, 1)
    node.ok("Unmount", Name="moving", ID="a")
    assert node.mounts() == []


def test_a_second_signal_does_not_break_off_either(
    make_node: Callable[..., Node],
) -> None:
    node = make_node(disk=True)
    node.start()
    node.freeze()
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(node.call, "Create", {"Name": "x"}, timeout_s=60)
        node.wait_blocked()
        for _ in range(3):
            node.process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
        assert node.process.poll() is None
        node.thaw()
        assert answer.result().json() == {}
    assert node.wait_exit() == 0


def test_sockets_left_by_a_crash_are_replaced(make_node: Callable[..., Node]) -> None:
    node = make_node()
    node.start()
    node.create("kept")
    node.kill()
    assert node.plugin_socket.is_socket()
    assert node.control_socket.is_socket()
    with pytest.raises(ConnectionRefusedError):
        client.connect(node.plugin_socket)
    node.start()
    assert node.names() == ["kept"]
    assert node.stop() == 0
    assert not node.plugin_socket.exists()


def storm(node: Node, worker: int, outcomes: list[str]) -> None:
    """Call one thing after the other until nobody answers; note what was told."""
    name = f"storm{worker}"
    rounds = ("Create", "Get", "Mount", "List", "Unmount", "Remove")
    for operation in itertools.cycle(rounds):
        content = client.go_json({"Name": name, "ID": "a"})
        request = client.engine_request(f"VolumeDriver.{operation}", content)
        try:
            received = node.send(request)
        except (ConnectionError, FileNotFoundError):
            return
        if not received:
            return
        answer = client.parse(received)
        outcomes.append(f"{answer.status} {answer.error}")


def test_calls_that_come_at_the_end_are_answered_or_left_unanswered(
    make_node: Callable[..., Node],
) -> None:
    """Silence makes an engine try again; an error would be its last word."""
    node = make_node()
    node.start()
    outcomes: list[str] = []
    with ThreadPoolExecutor(8) as threads:
        calls = [threads.submit(storm, node, each, outcomes) for each in range(8)]
        wait_until(lambda: len(outcomes) > 100, "calls are made")
        assert node.stop() == 0
        for call in calls:
            call.result()
    assert set(outcomes) == {"200 "}
    assert [each for each in node.log_lines() if each["level"] == "error"] == []
    node.start()
    for name in node.names():
        node.ok("Unmount", Name=name, ID="a")
        node.ok("Remove", Name=name)
    assert node.mount_directories() == []


def test_it_starts_and_stops_many_times(make_node: Callable[..., Node]) -> None:
    node = make_node()
    for number in range(4):
        node.start()
        node.create(f"v{number}")
        if number % 2:
            node.kill()
        else:
            assert node.stop() == 0
    node.start()
    assert node.names() == [f"v{number}" for number in range(4)]
    assert len(node.stored()) == 4
