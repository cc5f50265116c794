"""Asking another node: answers, errors, and never longer than the deadline."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from backends.errors import InvalidRequestError
from plugin.errors import PeerUnreachableError, RemoteError
from plugin.peers.channel import PeerChannel
from tests.support.etcd import new_address
from tests.support.host import REPOSITORY, wait_until
from tests.support.peers import COMMAND_DEADLINE_S, PORT, PeerNode
from tests.support.processes import command, descendants, stopped, with_argument

NODES = tuple[PeerNode, PeerNode]
WITHIN_S = COMMAND_DEADLINE_S


def hello(first: PeerNode, second: PeerNode) -> Any:
    return first.peers.call(second.id, "hello", {"x": 1}, deadline_s=WITHIN_S)


def test_both_ask_each_other(nodes: NODES) -> None:
    first, second = nodes
    assert hello(first, second) == {"you": first.id, "x": 1, "request": "hello"}
    assert hello(second, first) == {"you": second.id, "x": 1, "request": "hello"}
    assert first.peers.channel(second.id).address == second.address


def test_one_session_serves_all_calls(nodes: NODES) -> None:
    first, second = nodes
    threads = [threading.Thread(target=hello, args=(first, second)) for _ in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    hello(first, second)
    assert second.handlers.asked == ["hello"] * 7
    assert len(second.server._sessions) == 1


def test_a_slow_answer_does_not_delay_another(nodes: NODES) -> None:
    first, second = nodes
    promised: list[Any] = []

    def promise() -> None:
        promised.append(
            first.peers.call(second.id, "promise", {"epoch": 9}, deadline_s=WITHIN_S)
        )

    waiting = threading.Thread(target=promise)
    waiting.start()
    wait_until(
        lambda: second.handlers.asked, timeout_s=30, what="the slow one has begun"
    )
    hello(first, second)
    assert promised == []
    second.handlers.go_on.set()
    waiting.join()
    assert promised == [{"promised": 9, "commit": [0, 0]}]


def test_what_the_other_node_says_no_to(nodes: NODES) -> None:
    first, second = nodes
    with pytest.raises(RemoteError, match="peer-refused: not today") as refused:
        first.peers.call(second.id, "refuse", {}, deadline_s=WITHIN_S)
    assert refused.value.code == "peer-refused"
    assert refused.value.hint == "tomorrow"
    assert refused.value.exit_code == 24
    with pytest.raises(RemoteError, match="internal: a fault in the daemon"):
        first.peers.call(second.id, "broken", {}, deadline_s=WITHIN_S)
    with pytest.raises(RemoteError, match="a message of 70"):
        first.peers.call(second.id, "big", {}, deadline_s=WITHIN_S)
    with pytest.raises(InvalidRequestError, match="a message of 70"):
        first.peers.call(second.id, "hello", {"x": "x" * 70_000}, deadline_s=WITHIN_S)
    # It is the same session all the time.
    hello(first, second)
    assert len(second.server._sessions) == 1


def test_an_answer_that_is_late_is_no_answer(nodes: NODES) -> None:
    first, second = nodes
    hello(first, second)
    with pytest.raises(PeerUnreachableError, match="did not answer 'promise' in time"):
        first.peers.call(second.id, "promise", {"epoch": 1}, deadline_s=0.3)
    second.handlers.go_on.set()
    hello(first, second)
    assert len(second.server._sessions) == 1


def test_a_node_that_nobody_knows(nodes: NODES) -> None:
    first, second = nodes
    first.peers.update([])
    with pytest.raises(PeerUnreachableError, match="is not known here"):
        hello(first, second)


def test_a_node_that_restarts_is_reached_again(nodes: NODES) -> None:
    first, second = nodes
    hello(first, second)
    for _ in range(2):
        second.restart_sshd()
        # The first call may be the one that finds the old connection closed.
        wait_until(lambda: succeeds(first, second), timeout_s=30, what="it answers")


def succeeds(first: PeerNode, second: PeerNode) -> bool:
    try:
        hello(first, second)
    except PeerUnreachableError:
        return False
    return True


def test_who_waits_for_an_answer_hears_of_the_end(nodes: NODES) -> None:
    first, second = nodes
    errors: list[Exception] = []

    def promise() -> None:
        try:
            first.peers.call(second.id, "promise", {"epoch": 1}, deadline_s=WITHIN_S)
        except PeerUnreachableError as error:
            errors.append(error)

    waiting = threading.Thread(target=promise)
    waiting.start()
    wait_until(lambda: second.handlers.asked, timeout_s=30, what="it has begun")
    began_s = time.monotonic()
    second.sshd.stop()
    waiting.join()
    assert len(errors) == 1
    assert time.monotonic() - began_s < WITHIN_S / 2
    second.handlers.go_on.set()


def test_a_node_that_is_down_costs_no_more_than_the_deadline(nodes: NODES) -> None:
    first, second = nodes
    second.sshd.stop()
    with pytest.raises(PeerUnreachableError, match="Connection refused"):
        hello(first, second)
    # The next ones do not even try for a moment; and then they do.
    with pytest.raises(PeerUnreachableError, match="Connection refused"):
        hello(first, second)
    second.sshd = second.new_sshd()
    second.sshd.start()
    second.await_sshd()
    wait_until(lambda: succeeds(first, second), timeout_s=30, what="it is found again")


@contextmanager
def silent(address: str) -> Iterator[None]:
    """Have something listen at *address* that never says a word."""
    with socket.create_server((address, PORT)):
        yield


def test_a_node_that_is_silent_costs_no_more_than_the_deadline(nodes: NODES) -> None:
    first, second = nodes
    address = new_address()
    with silent(address):
        channel = PeerChannel(second.record(addresses=(address,)), first.ssh)
        with pytest.raises(PeerUnreachableError, match="no connection to node 'beta'"):
            channel.call("hello", {}, deadline_s=0.5)
        channel.close()


def test_addresses_are_tried_in_turn(nodes: NODES) -> None:
    first, second = nodes
    # Nobody listens at the first one; at the next one there is another node.
    addresses = (new_address(), first.address, second.address)
    channel = PeerChannel(second.record(addresses=addresses), first.ssh)
    try:
        channel.call("hello", {}, deadline_s=WITHIN_S)
        assert channel.address == second.address
    finally:
        channel.close()


def test_another_node_at_its_address_is_not_asked(nodes: NODES) -> None:
    first, second = nodes
    wrong = second.record(addresses=(first.address,))
    first.knows(second.record(), first.record())
    channel = PeerChannel(wrong, first.ssh)
    try:
        with pytest.raises(PeerUnreachableError, match="has another host key"):
            channel.call("hello", {}, deadline_s=WITHIN_S)
    finally:
        channel.close()
    assert first.handlers.asked == []


def test_a_node_that_does_not_let_us_in(nodes: NODES) -> None:
    first, second = nodes
    second.knows()
    with pytest.raises(PeerUnreachableError, match="Authentication failed"):
        hello(first, second)
    # In, but no member any more: its daemon's word reaches us.
    second.authorization.write([first.record()])
    wait_until(
        lambda: "is no member of the cluster" in fault(lambda: hello(first, second)),
        timeout_s=30,
        what="the refusal is told",
    )


def test_a_node_that_lets_us_in_and_refuses_is_not_asked_without_end(
    nodes: NODES, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = nodes
    second.server.set_members([])
    opened: list[str] = []
    control_command = first.ssh.control_command

    def noted(peer: Any, address: str) -> list[str]:
        opened.append(address)
        return control_command(peer, address)

    monkeypatch.setattr(first.ssh, "control_command", noted)
    for _ in range(20):
        assert not succeeds(first, second)
    assert len(opened) < 10
    second.server.set_members([first.id])
    wait_until(lambda: succeeds(first, second), timeout_s=30, what="it answers again")


def fault(call: Callable[[], object]) -> str:
    try:
        call()
    except PeerUnreachableError as error:
        return str(error)
    return ""


def test_a_frozen_node_costs_no_more_than_the_deadline(nodes: NODES) -> None:
    first, second = nodes
    hello(first, second)
    [listener] = [
        pid
        for pid in with_argument(str(second.peer_directory / "sshd_config"))
        if command(pid) == "sshd"
    ]
    frozen = [listener, *descendants(listener)]
    assert len(frozen) > 2
    with (
        stopped(frozen),
        pytest.raises(PeerUnreachableError, match="did not answer 'hello'"),
    ):
        first.peers.call(second.id, "hello", {}, deadline_s=1.0)
    wait_until(lambda: succeeds(first, second), timeout_s=30, what="it answers again")


def test_all_are_asked_at_once(nodes: NODES) -> None:
    first, second = nodes
    dead = second.record(
        id="0f1b6c2e-1f4b-4c5e-9d0a-5f6c7d8e9fa0", addresses=(new_address(),)
    )
    address = new_address()
    mute = second.record(
        id="1f1b6c2e-1f4b-4c5e-9d0a-5f6c7d8e9fa0", addresses=(address,)
    )
    unknown = "2f1b6c2e-1f4b-4c5e-9d0a-5f6c7d8e9fa0"
    first.peers.update([second.record(), dead, mute])
    hello(first, second)
    with silent(address):
        answers = first.peers.call_all(
            [second.id, dead.id, mute.id, unknown], "hello", {}, deadline_s=3.0
        )
    assert set(answers) == {second.id, dead.id, mute.id, unknown}
    assert answers[second.id] == {"you": first.id, "request": "hello"}
    for node_id in (dead.id, mute.id, unknown):
        assert isinstance(answers[node_id], PeerUnreachableError)


def test_a_record_that_has_not_changed_keeps_its_channel(nodes: NODES) -> None:
    first, second = nodes
    channel = first.peers.channel(second.id)
    first.peers.update([second.record()])
    assert first.peers.channel(second.id) is channel
    first.peers.update([second.record(addresses=(second.address, "10.1.1.1"))])
    assert first.peers.channel(second.id) is not channel
    with pytest.raises(PeerUnreachableError, match="is no peer any more"):
        channel.call("hello", {}, deadline_s=WITHIN_S)
    hello(first, second)


def test_what_a_daemon_does_not_pay_for() -> None:
    """
    paramiko takes 20 MB; only who enrols another machine imports it. Its cryptography
    alone takes 9: a program of its own uses that for block indexes.
    """
    script = (
        "import sys, plugin.daemon.daemon, plugin.cli.main;"
        "import backends.rsync.journal.block_index;"
        "print('paramiko' in sys.modules or 'cryptography' in sys.modules)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert shown.stdout.strip() == "False"


def test_a_session_at_rest_takes_little_more_than_a_bare_python(
    nodes: NODES,
) -> None:
    """A node has one with each other node of its cluster."""
    hello(*nodes)
    [session] = [
        pid
        for pid in descendants(os.getpid())
        if command(pid).startswith("python") and "relay" in arguments(pid)
    ]
    bare = [sys.executable, "-IS", "-c", "import os, select; os.read(0, 1)"]
    with subprocess.Popen(bare, stdin=subprocess.PIPE) as process:
        wait_until(lambda: asleep(process.pid), timeout_s=20, what="it waits")
        assert private_kib(session) < 1.2 * private_kib(process.pid)
        process.kill()


def arguments(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def asleep(pid: int) -> bool:
    return b"pipe_read" in Path(f"/proc/{pid}/wchan").read_bytes()


def private_kib(pid: int) -> int:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(text.partition("Private_Dirty:")[2].split()[0])
