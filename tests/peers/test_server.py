"""The daemon's side: what comes over the socket is bounded, checked and answered."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plugin.daemon.sockets import bind_socket
from plugin.peers import server as module
from plugin.peers.control import REQUESTS_MAX, TRANSFERS_MAX
from plugin.peers.server import PeerServer
from tests.support.host import wait_until
from tests.support.peers import VOLUME, Handlers, Staging

NODE = "0f1b6c2e-1f4b-4c5e-9d0a-5f6c7d8e9fa0"
OTHER = "1f1b6c2e-1f4b-4c5e-9d0a-5f6c7d8e9fa0"
WITHIN_S = 30.0
Json = dict[str, Any]


class Session:
    """What a `remora-receive` does, by hand."""

    def __init__(self, path: Path, first: object = None) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(WITHIN_S)
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise
        self.file = self.socket.makefile("rb")
        if first is not None:
            self.send(first)

    def send(self, message: object) -> None:
        self.send_bytes(json.dumps(message).encode() + b"\n")

    def send_bytes(self, content: bytes) -> None:
        self.socket.sendall(content)

    def answer(self) -> Json:
        line = self.file.readline()
        assert line, "the session has ended"
        answer: Json = json.loads(line)
        return answer

    def ended(self) -> bool:
        try:
            return self.file.read() == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.file.close()
        self.socket.close()


class World:
    """A server and the sessions of a test."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "s"
        self.handlers = Handlers()
        self.staging = Staging(directory)
        self.server = PeerServer(
            bind_socket(self.path),
            handlers={**self.handlers.all(), "send": self.handlers.promise},
            receiver=self.staging,
            transfers=["send"],
        )
        self.server.set_members([NODE])
        self.server.start()
        self.sessions: list[Session] = []

    def session(self, first: object = None) -> Session:
        made = Session(self.path, first)
        self.sessions.append(made)
        return made

    def control(self, node: str = NODE) -> Session:
        made = self.session({"node": node, "session": "control"})
        assert made.answer() == {"result": {}}
        return made

    def receive(self, **changes: Any) -> Session:
        first = {"node": NODE, "session": "receive", "volume": VOLUME}
        return self.session({**first, "epoch": 5, "seq": 1, **changes})

    def close(self) -> None:
        self.handlers.go_on.set()
        for each in self.sessions:
            each.close()
        self.server.stop()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def test_only_root_can_reach_it(world: World) -> None:
    assert world.path.stat().st_mode & 0o777 == 0o600


def test_a_request_is_answered_with_its_number(world: World) -> None:
    session = world.control()
    session.send({"id": 7, "request": "hello", "x": [1]})
    assert session.answer() == {
        "id": 7,
        "result": {"you": NODE, "request": "hello", "x": [1]},
    }


def test_a_slow_request_does_not_delay_another(world: World) -> None:
    session = world.control()
    session.send({"id": 1, "request": "promise", "epoch": 3})
    session.send({"id": 2, "request": "hello"})
    assert session.answer()["id"] == 2
    world.handlers.go_on.set()
    assert session.answer() == {"id": 1, "result": {"promised": 3, "commit": [0, 0]}}


@pytest.mark.parametrize(
    ("request_name", "code", "cause"),
    [
        ("nope", "invalid-request", "there is no request 'nope'"),
        (None, "invalid-request", "there is no request None"),
        ([1], "invalid-request", "there is no request [1]"),
        ("refuse", "peer-refused", "not today"),
        ("broken", "internal", "a fault in the daemon; see its log"),
        ("big", "invalid-request", "a message of 70"),
    ],
)
def test_an_error_is_an_answer_and_is_logged(
    world: World,
    caplog: pytest.LogCaptureFixture,
    request_name: object,
    code: str,
    cause: str,
) -> None:
    session = world.control()
    session.send({"id": 1, "request": request_name})
    error = session.answer()["error"]
    assert error["code"] == code
    assert cause in error["cause"]
    assert set(error) == {"code", "cause", "hint", "transient", "exit_code"}
    assert "refused a peer" in caplog.text
    # The session goes on.
    session.send({"id": 2, "request": "hello"})
    assert session.answer()["id"] == 2


@pytest.mark.parametrize(
    "content",
    [
        *(b"not json\n", b"[1]\n", b"\xff\xfe\n", b"\n"),
        pytest.param(b"x" * 70_000, id="long"),
        pytest.param(b'{"id":' + b"[" * 5000 + b"\n", id="deep"),
    ],
)
def test_what_is_no_request_ends_the_session(
    world: World, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    session = world.control()
    session.send_bytes(content)
    error = session.answer()["error"]
    assert error["code"] == "invalid-request"
    assert session.ended()
    assert caplog.text.count("refused a peer: invalid-request") == 1
    assert world.control()


@pytest.mark.parametrize(
    "first",
    [
        {"node": OTHER, "session": "control"},
        {"node": "", "session": "control"},
        {"node": NODE, "session": "refused", "command": "bash"},
        {"node": NODE, "session": "other"},
        {"node": OTHER, "session": "receive", "volume": VOLUME, "epoch": 5, "seq": 1},
    ],
)
def test_who_is_not_admitted_is_told_and_logged(
    world: World, caplog: pytest.LogCaptureFixture, first: Json
) -> None:
    session = world.session(first)
    assert session.answer()["error"]["code"] == "peer-refused"
    assert session.ended()
    assert "refused a peer: peer-refused" in caplog.text
    assert world.staging.begun == []


@pytest.mark.parametrize("first", [[], "x", {"node": 1, "session": "control"}, {}])
def test_a_session_that_begins_wrong_is_ended(
    world: World, caplog: pytest.LogCaptureFixture, first: object
) -> None:
    assert world.session(first).ended()
    assert "a session began wrong" in caplog.text


def test_a_line_break_in_a_command_is_none_in_the_log(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.session(
        {"node": NODE, "session": "refused", "command": "a\nrefused nothing"}
    ).answer()
    [record] = [
        each for each in caplog.records if "refused a peer" in each.getMessage()
    ]
    assert "\n" not in record.getMessage()


def test_a_silent_session_is_given_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FIRST_LINE_TIMEOUT_S", 0.2)
    assert world.session().ended()


def test_sessions_are_bounded(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.server.set_members([NODE, OTHER])
    for _ in range(module.SESSIONS_OF_NODE_MAX):
        world.control()
    one_more = world.session({"node": NODE, "session": "control"})
    assert "may no more" in one_more.answer()["error"]["cause"]
    # The other node has its own.
    world.control(OTHER)
    for _ in range(module.SESSIONS_MAX - module.SESSIONS_OF_NODE_MAX - 1):
        world.session()
    wait_until(
        lambda: len(world.server._sessions) == module.SESSIONS_MAX,
        timeout_s=WITHIN_S,
        what="all places are taken",
    )
    assert world.session().ended()
    assert "too many are open" in caplog.text


def test_requests_under_way_are_bounded(world: World) -> None:
    session = world.control()
    for number in range(REQUESTS_MAX + 1):
        session.send({"id": number, "request": "promise", "epoch": 1})
    refused = session.answer()
    assert refused["id"] == REQUESTS_MAX
    assert "under way already" in refused["error"]["cause"]
    world.handlers.go_on.set()
    answers = {session.answer()["id"] for _ in range(REQUESTS_MAX)}
    assert answers == set(range(REQUESTS_MAX))


def test_a_node_has_no_more_under_way_with_several_sessions(world: World) -> None:
    first, second = world.control(), world.control()
    for number in range(REQUESTS_MAX):
        first.send({"id": number, "request": "promise", "epoch": 1})
    wait_until(
        lambda: len(world.handlers.asked) == REQUESTS_MAX,
        timeout_s=WITHIN_S,
        what="all are under way",
    )
    second.send({"id": 1, "request": "promise", "epoch": 1})
    refused = second.answer()
    assert "under way already" in refused["error"]["cause"]
    world.handlers.go_on.set()
    answers = {first.answer()["id"] for _ in range(REQUESTS_MAX)}
    assert answers == set(range(REQUESTS_MAX))
    second.send({"id": 2, "request": "hello"})
    assert second.answer()["id"] == 2


def test_transfers_leave_room_for_requests(world: World) -> None:
    session = world.control()
    for number in range(TRANSFERS_MAX + 1):
        session.send({"id": number, "request": "send", "epoch": 1})
    refused = session.answer()
    assert refused["id"] == TRANSFERS_MAX
    assert "transfers are under way already" in refused["error"]["cause"]
    session.send({"id": 100, "request": "hello"})
    assert session.answer()["result"]["you"] == NODE
    world.handlers.go_on.set()
    answers = {session.answer()["id"] for _ in range(TRANSFERS_MAX)}
    assert answers == set(range(TRANSFERS_MAX))


def test_who_has_all_its_transfers_under_way_still_gets_a_control_session(
    world: World,
) -> None:
    for _ in range(module.SESSIONS_OF_NODE_MAX):
        assert "result" in world.receive().answer()
    assert "may no more" in world.receive().answer()["error"]["cause"]
    world.control()


def test_who_takes_no_answers_is_hung_up_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SEND_TIMEOUT_S", 1)
    session = world.control()
    line = json.dumps({"id": 1, "request": "hello", "x": "x" * 30_000}).encode() + b"\n"

    def push() -> None:
        try:
            while True:
                session.send_bytes(line)
        except OSError:
            return

    pusher = threading.Thread(target=push)
    pusher.start()
    wait_until(
        lambda: len(world.server._sessions) == 0,
        timeout_s=WITHIN_S,
        what="it has ended",
    )
    pusher.join(WITHIN_S)
    assert not pusher.is_alive()


def test_sessions_of_a_removed_node_end(world: World) -> None:
    world.server.set_members([NODE, OTHER])
    control, other, receive = world.control(), world.control(OTHER), world.receive()
    assert receive.answer()["result"]["directory"] == str(world.staging.directory)
    world.server.set_members([OTHER])
    assert control.ended()
    assert receive.ended()
    wait_until(
        lambda: world.staging.ended == [None], timeout_s=WITHIN_S, what="it is told"
    )
    other.send({"id": 1, "request": "hello"})
    assert other.answer()["id"] == 1


def test_stopping_ends_sessions(world: World) -> None:
    session = world.control()
    world.server.stop()
    assert session.ended()
    with pytest.raises(ConnectionRefusedError):
        Session(world.path)


# Receiving


def test_the_end_of_a_transfer_is_told_once(world: World) -> None:
    session = world.receive()
    assert session.answer()["result"]["directory"] == str(world.staging.directory)
    assert world.staging.begun == [(VOLUME, 5, 1)]
    assert world.staging.ended == []
    session.send({"exit_status": 23})
    assert session.answer() == {"result": {}}
    assert session.ended()
    assert world.staging.ended == [23]


@pytest.mark.parametrize("last", [b"", b"half a line", b"x\n", b"{}\n", b"[1]\n"])
def test_a_transfer_that_breaks_off_is_told_once(world: World, last: bytes) -> None:
    session = world.receive()
    session.answer()
    session.send_bytes(last)
    session.close()
    wait_until(
        lambda: world.staging.ended == [None], timeout_s=WITHIN_S, what="it is told"
    )
    wait_until(
        lambda: len(world.server._sessions) == 0, timeout_s=WITHIN_S, what="it ended"
    )
    assert world.staging.ended == [None]


def test_a_refused_transfer_has_no_end(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    session = world.receive(epoch=4)
    assert session.answer()["error"]["code"] == "stale-epoch"
    assert session.ended()
    assert world.staging.ended == []
    [record] = [each for each in caplog.records if "stale-epoch" in each.getMessage()]
    told = record.remora_fields  # type: ignore[attr-defined]
    assert told == {"node": NODE, "volume": VOLUME, "epoch": 4, "seq": 1}


def test_a_control_session_cannot_begin_a_transfer(world: World) -> None:
    session = world.control()
    session.send(
        {"id": 1, "request": "receive", "volume": VOLUME, "epoch": 5, "seq": 1}
    )
    assert session.answer()["error"]["code"] == "invalid-request"
    session.send({"id": 2, "request": "begin"})
    assert session.answer()["error"]["code"] == "invalid-request"
    assert world.staging.begun == []
