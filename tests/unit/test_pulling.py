"""How a new owner gets a commit: from whom, in how many requests, how patiently."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backends.errors import InvalidRequestError
from backends.system.clock import Deadline
from plugin.errors import (
    NotOwnerError,
    PeerRefusedError,
    PeerUnreachableError,
    RemoteError,
)
from plugin.ownership.state import (
    EMPTY,
    Choice,
    Commit,
    CopyState,
    Epoch,
    Head,
    Kept,
    Lineage,
    RefusedError,
)
from plugin.replication import at_work
from plugin.replication import pulling as module
from plugin.replication.at_work import Patience, Workers, WorkRequest
from plugin.replication.progress import Progress
from plugin.replication.pulling import Pulling
from plugin.replication.receiving import Receiving
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
        self.head, self.lineage = Head(epoch=2, owner="own"), Lineage({})
        self.promised = 2

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

    def receive(
        self, _record: object, _base: object, rule: Callable[..., Kept]
    ) -> dict[str, object]:
        if self.missing:
            return {"missing": self.missing[: self.at_once_max]}
        copy = CopyState(promised=self.promised, commit=OLD)
        try:
            self.at = rule(copy, stopped=True).copy.commit
        except RefusedError as error:
            raise PeerRefusedError(error.reason) from None
        return {"commit": [1, 5]}

    def pulling(self) -> Pulling:
        state = SimpleNamespace(
            read=lambda _: SimpleNamespace(head=self.head),
            lineage=lambda _: self.lineage,
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
            expect_nothing=lambda *_: None,
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


def test_what_comes_after_another_vote_is_not_taken() -> None:
    """That vote, and what began with it, were of the copy as it was."""
    line = Line()
    line.promised = 3
    with pytest.raises(NotOwnerError, match="stale-epoch"):
        pull(line, line.pulling(), "gamma")
    assert line.at == OLD


@pytest.mark.parametrize(
    ("head", "epochs"),
    [
        # Another node has come; this one has begun with what it had.
        (Head(epoch=3, owner="beta", phase="owned"), {}),
        (Head(epoch=3, owner="own", phase="owned"), {3: Epoch(OLD, "own")}),
        (Head(epoch=3, owner="own", phase="idle"), {3: Epoch(OLD, "own")}),
    ],
)
def test_a_transfer_that_nobody_waits_for_any_more_ends(
    head: Head, epochs: dict[int, Epoch]
) -> None:
    """Its holder can make no commit meanwhile, and no other holder is asked."""
    line = Line(silent=["gamma"])
    pulling = line.pulling()
    with pytest.raises(NotOwnerError, match="catching up"):
        pulling.pull(RECORD, 2, Choice(BASE, ("gamma", "beta"), EMPTY), Deadline(0))
    wait_until(lambda: line.asked == ["gamma"], timeout_s=5, what="it is asked")
    line.head, line.lineage = head, Lineage(epochs)
    wait_until(pulling._pulls["volume"].work.done, timeout_s=5, what="it has ended")
    assert line.asked == ["gamma"]


def receiving_of(head: Head, copy: CopyState, ended: list[object]) -> Receiving:
    journals: Any = SimpleNamespace(
        using=lambda *_: nullcontext(),
        copy_states=SimpleNamespace(read=lambda *_, **__: copy),
    )
    heads = SimpleNamespace(read=lambda _: SimpleNamespace(head=head))
    ownership: Any = SimpleNamespace(heads=heads, node_id="own", events=None)
    other: Any = None
    return Receiving(
        ownership,
        journals,
        find=other,
        by_id=other,
        room=other,
        stop_writers=ended.append,  # type: ignore[arg-type]
        note_apart=other,
        progress=other,
        nice=0,
    )


def test_no_container_is_ended_for_what_is_refused() -> None:
    ended: list[object] = []
    live = CopyState(promised=3, commit=OLD, live_epoch=3)
    receiving = receiving_of(Head(), live, ended)

    def refused(_copy: CopyState, *, stopped: bool) -> None:
        raise RefusedError("stale-epoch" if stopped else "writers-running")

    with pytest.raises(PeerRefusedError, match="stale-epoch"):
        receiving.receive(RECORD, BASE, refused)
    assert not ended


def test_a_holder_that_was_asked_and_owns_the_volume_now_sends_its_commits() -> None:
    """What it was asked for may still be under way."""
    members = ("own", "beta")
    head = Head(epoch=3, owner="beta", phase="owned", members=members)
    receiving = receiving_of(head, CopyState(), [])
    receiving.expect("volume", "beta", BASE)
    assert receiving._require_sender("beta", "volume", Commit(3, 1)) == head


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
