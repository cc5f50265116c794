"""How a new owner gets a commit: from whom, in how many requests, how patiently."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backends.errors import InvalidRequestError
from backends.system.clock import Deadline
from plugin.errors import NotOwnerError, PeerUnreachableError, RemoteError
from plugin.ownership.state import EMPTY, Choice, Commit
from plugin.replication import at_work
from plugin.replication import pulling as module
from plugin.replication.at_work import Patience, Workers, WorkRequest
from plugin.replication.progress import Progress
from plugin.replication.pulling import Pulling
from tests.support.host import wait_until

RECORD: Any = SimpleNamespace(id="volume", name="v")
OLD, BASE = Commit(1, 3), Commit(1, 5)


class Line:
    """A copy at `OLD` and holders without history; *silent* ones never answer."""

    def __init__(self, files: int = 1, silent: Sequence[str] = ()) -> None:
        self.missing = [f"f{number}" for number in range(files)]
        self.silent = silent
        self.at = OLD
        self.at_once_max = 500
        self.asked: list[str] = []
        self.leases = {"beta": 0, "gamma": 7}

    def call(
        self,
        node_id: str,
        request: str,
        body: Mapping[str, Any],
        *,
        deadline_s: float,
        patient: Callable[[], bool] = lambda: True,
    ) -> dict[str, object]:
        del deadline_s
        assert request == "send"
        self.asked.append(node_id)
        if node_id in self.silent:
            while patient():
                threading.Event().wait(0.01)
            raise PeerUnreachableError(f"{node_id} is silent")
        ahead = Commit(*body["have"]) == EMPTY and not body["paths"]
        come = {*self.missing} if ahead else {*body["paths"]}
        self.missing = [each for each in self.missing if each not in come]
        return {"carried_bytes": 1}

    def receive(self, *_: object) -> dict[str, object]:
        if self.missing:
            return {"missing": self.missing[: self.at_once_max]}
        self.at = BASE
        return {"commit": [1, 5]}

    def pulling(self) -> Pulling:
        state = SimpleNamespace(
            lineage=lambda _: SimpleNamespace(after=lambda *_: None)
        )
        ownership: Any = SimpleNamespace(
            node_id="own",
            heads=state,
            copy_state=lambda _: SimpleNamespace(commit=self.at, live_epoch=0),
            events=SimpleNamespace(add=lambda *_, **__: None),
            name_of=str,
            nodes=SimpleNamespace(lease_of=self.leases.get),
        )
        nothing = SimpleNamespace(
            expect=lambda *_: None,
            expect_nothing=lambda _: None,
            count=lambda _: None,
            receive=self.receive,
        )
        line, receiving, journals = [self, nothing, self]
        return Pulling(ownership, journals, receiving, line, Progress())  # type: ignore[arg-type]

    def home(self, _: object) -> Path:
        return Path("home")

    def using(self, *_: object) -> Line:
        return self

    def __enter__(self) -> Any:
        return SimpleNamespace(commit=lambda: (OLD.epoch, OLD.seq))

    def __exit__(self, *_: object) -> None:
        return None


@pytest.fixture(autouse=True)
def nothing_is_half_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_whole", lambda _: True)


def pull(line: Line, pulling: Pulling, *holders: str) -> None:
    pulling.pull(RECORD, 2, Choice(BASE, holders, EMPTY), Deadline(61))
    assert line.at == BASE


@pytest.mark.parametrize(("at_once_max", "requests"), [(500, 2), (50, 3)])
def test_a_copy_that_lacks_very_many_files_gets_all_of_them_ahead(
    at_once_max: int, requests: int
) -> None:
    """Of those with long paths fewer can be told at once."""
    line = Line(files=20_000)
    line.at_once_max = at_once_max
    pull(line, line.pulling(), "gamma")
    assert len(line.asked) == requests


def test_a_holder_that_is_silent_without_a_lease_makes_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(at_work, "DOUBTED_SILENCE_MAX_S", 0.0)
    line = Line(silent=["beta"])
    pull(line, line.pulling(), "beta", "gamma")
    assert line.asked == ["beta", *["gamma"] * 2]


def test_a_holder_that_is_chosen_no_more_makes_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(at_work, "DOUBTED_SILENCE_MAX_S", 0.0)
    line = Line(silent=["beta"])
    line.leases["beta"] = 9
    pulling = line.pulling()
    with pytest.raises(NotOwnerError, match="catching up"):
        pulling.pull(RECORD, 2, Choice(BASE, ("beta",), EMPTY), Deadline(0))
    pull(line, pulling, "gamma")
    assert line.asked[0] == "beta"


class Told:
    """A node that says *answers*, one after the other, of its work."""

    def __init__(self, *answers: object) -> None:
        self.answers = [*answers]

    def call(self, *_: object, **__: object) -> dict[str, object]:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return {"worked_ns": answer}


OF_BEFORE = RemoteError(
    InvalidRequestError.code, "no such request", hint="", exit_code=1
)


@pytest.mark.parametrize(
    ("answers", "waits"),
    [
        (range(999), True),
        ([5], False),
        ([5, PeerUnreachableError("stopped")], False),
        ([OF_BEFORE], True),
    ],
)
def test_the_silence_of_a_node_is_bounded_and_not_its_work(
    monkeypatch: pytest.MonkeyPatch, answers: Sequence[object], waits: bool
) -> None:
    seconds = itertools.count(step=5)
    monkeypatch.setattr(at_work, "monotonic_s", lambda: next(seconds))
    monkeypatch.setattr(at_work, "_ASK_EVERY_S", 0.0)
    peers: Any = Told(*answers)
    patience = Patience(peers, "beta", RECORD.id)
    asked = [patience() for _ in range(100)]
    assert asked[0]
    assert all(asked) == waits


def test_a_thread_that_waits_is_not_at_work() -> None:
    workers, busy, end = Workers(), threading.Event(), threading.Event()
    busy.set()

    def work() -> None:
        with workers.working(RECORD.id):
            while busy.is_set():
                end.wait(0.001)
            end.wait()

    def moves() -> bool:
        before = workers.answer("beta", WorkRequest(RECORD.id))
        end.wait(0.05)
        return workers.answer("beta", WorkRequest(RECORD.id)) != before

    thread = threading.Thread(target=work)
    thread.start()
    try:
        wait_until(moves, timeout_s=30, what="work is seen")
        busy.clear()
        wait_until(lambda: not moves(), timeout_s=30, what="waiting is seen")
    finally:
        busy.clear()
        end.set()
        thread.join()
    assert workers.answer("beta", WorkRequest(RECORD.id)) == {"worked_ns": 0}
