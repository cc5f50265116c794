"""The machine has no thread left for a moment: callers hear it, and nothing is lost."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backends.errors import VolumeBusyError
from backends.system.aside import begun
from plugin.errors import PeerUnreachableError
from plugin.peers.channel import PeerChannel, Peers
from plugin.peers.control import ControlSession, Slots
from plugin.peers.lines import Lines, encode
from plugin.peers.server import PeerServer
from plugin.replication.deliveries import Deliveries, Delivery
from plugin.replication.move import VolumeMove
from plugin.volumes.chores import Chores
from plugin.volumes.operations import Operations

NoThread = Callable[[], AbstractContextManager[None]]
PEER: Any = SimpleNamespace(id="beta", name="beta", addresses=("127.0.0.1",))


@contextmanager
def no_thread() -> Iterator[None]:
    """Let no thread start: no address space has room for such a stack."""
    before = threading.stack_size(1 << 47)
    try:
        yield
    finally:
        threading.stack_size(before)


def test_it_is_the_outcome() -> None:
    with no_thread():
        outcome = begun(lambda: "done", name="work")
    assert isinstance(outcome.exception(), VolumeBusyError)
    assert begun(lambda: "done", name="work").result(20) == "done"


def test_an_operation_gives_its_place_back() -> None:
    operations = Operations(operations_max=1)
    with no_thread(), pytest.raises(VolumeBusyError, match="no thread"):
        operations.run("db", lambda _: None, deadline_s=20)
    assert operations.run("db", lambda _: "done", deadline_s=20) == "done"


def test_a_chore_is_due_again() -> None:
    chores = Chores(threads_max=1)
    with no_thread():
        assert chores.run("work", lambda: "done", patience_s=20) is None
    assert chores.run("work", lambda: "done", patience_s=20) == "done"


def test_the_next_session_is_accepted(tmp_path: Path) -> None:
    path = str(tmp_path / "peer.sock")
    listener = socket.create_server(path, family=socket.AF_UNIX)
    server = PeerServer(listener, handlers={}, receiver=SimpleNamespace())  # type: ignore[arg-type]
    server.start()
    hello = encode({"node": "beta", "session": "control"})
    try:
        with socket.socket(socket.AF_UNIX) as refused, no_thread():
            refused.settimeout(20)
            refused.connect(path)
            assert refused.recv(1) == b""
        with socket.socket(socket.AF_UNIX) as answered:
            answered.settimeout(20)
            answered.connect(path)
            answered.sendall(hello)
            line = Lines(answered.recv).next()
            assert line is not None
            assert b"is no member" in line
    finally:
        server.stop()


def test_a_request_gives_its_place_back() -> None:
    ours, theirs = socket.socketpair()
    slots = Slots()
    session = ControlSession(
        ours, "beta", {"hello": lambda *_: {}}, frozenset(), slots=slots
    )
    with ours, theirs:
        theirs.settimeout(20)
        lines = Lines(theirs.recv)
        with no_thread():
            session.handle(encode({"id": 1, "request": "hello"}))
        assert b"no thread" in (lines.next() or b"")
        session.handle(encode({"id": 2, "request": "hello"}))
        assert b"result" in (lines.next() or b"")


def test_a_channel_connects_again() -> None:
    ssh: Any = SimpleNamespace()
    channel = PeerChannel(PEER, ssh)
    with no_thread(), pytest.raises(PeerUnreachableError, match="no thread"):
        channel.call("hello", {}, deadline_s=20)
    assert not channel._connecting


def test_nodes_that_cannot_be_asked_are_errors() -> None:
    ssh: Any = SimpleNamespace()
    with no_thread():
        answers = Peers(ssh).call_all(["beta", "gamma"], "hello", {}, deadline_s=20)
    assert {type(each) for each in answers.values()} == {VolumeBusyError}


def test_a_delivery_has_failed_and_what_was_packed_goes() -> None:
    record: Any = SimpleNamespace(id="id", name="db")
    report: Any = SimpleNamespace(commit=None)
    delivery = Delivery(
        *(record, "beta", report),
        base=None,
        since=(0, 0),
        filled=False,
        send=dict,
    )
    cleared = threading.Event()
    deliveries = Deliveries()
    with no_thread():
        assert deliveries.deliver([delivery]) == []
        deliveries.after([delivery], cleared.set)
    assert isinstance(delivery.error, VolumeBusyError)
    assert cleared.is_set()


def test_a_move_has_ended() -> None:
    record: Any = SimpleNamespace(id="id", name="db")
    move = VolumeMove(record, "beta")
    with no_thread():
        moving = begun(lambda: None, name="moving")
    moving.add_done_callback(move.end)
    assert move.ended
    assert isinstance(move.error, VolumeBusyError)
    assert wait([moving], 0).done
