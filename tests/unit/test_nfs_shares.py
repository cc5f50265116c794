"""What is concluded from shares that do not answer."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backends.base import Volume
from backends.errors import DeadlineError, InvalidRequestError, RemoraError
from backends.nfs.backend import NfsBackend
from backends.nfs.errors import NfsError, NfsTimeoutError
from backends.nfs.share import Share, ShareState
from backends.system.clock import Deadline
from backends.system.run import Helper

VOLUME = Volume(
    id="11111111-1111-4111-8111-111111111111",
    name="v",
    options={
        "server": "192.0.2.1",
        "share": "/x",
        "nfsvers": "4",
        "mountMode": "subdir",
    },
    created_at="2026-01-01T00:00:00Z",
)


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NfsBackend:
    """Return a backend that has read its one share, and found nothing there."""
    monkeypatch.setattr(Share, "start", lambda _: None)
    backend = NfsBackend(tmp_path, node="node")
    backend._shares.of(VOLUME).state = ShareState(state="ok", markers=[])
    assert backend.knows(VOLUME)
    return backend


def _answer_with(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[], dict[str, Any] | None]
) -> None:
    monkeypatch.setattr(Share, "call", lambda *_, **__: answer())


def test_what_is_not_there_is_known_not_to_be(
    backend: NfsBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    _answer_with(monkeypatch, lambda: None)
    assert backend.find("v", deadline_s=1) is None
    assert backend.knows(VOLUME)


def test_what_does_not_answer_is_not_taken_to_have_nothing(
    backend: NfsBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the record of a volume that is there would be dropped."""

    def refuse() -> None:
        raise NfsTimeoutError("no answer", "192.0.2.1:/x")

    _answer_with(monkeypatch, refuse)
    with pytest.raises(NfsTimeoutError):
        backend.find("v", deadline_s=1)


def test_silence_is_no_answer_either(
    backend: NfsBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    _answer_with(monkeypatch, lambda: time.sleep(0.5))
    with pytest.raises(DeadlineError):
        backend.find("v", deadline_s=0.05)


def test_one_that_answers_is_enough(
    backend: NfsBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {**VOLUME.options, "share": "/y"}
    backend._shares.of(dataclasses.replace(VOLUME, options=other)).state = ShareState(
        state="ok", markers=[]
    )
    marker = {
        "id": VOLUME.id,
        "name": "v",
        "options": other,
        "created_at": VOLUME.created_at,
        "requested": {},
    }
    answers: list[Any] = [marker, None]

    def answer() -> Any:
        found = answers.pop()
        if found is None:
            time.sleep(0.5)
        return found

    _answer_with(monkeypatch, answer)
    found = backend.find("v", deadline_s=0.3)
    assert found is not None
    assert found.id == VOLUME.id


def test_an_answer_that_is_too_deep_is_none(
    backend: NfsBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = backend._shares.of(VOLUME)
    monkeypatch.setattr(Share, "require_server", lambda *_: None)
    monkeypatch.setattr("backends.nfs.share.mounted_at", lambda _: True)
    share._agent = Helper(["sh", "-c", "read line; printf '%*s\n' 9999 | tr ' ' '['"])
    with pytest.raises(NfsTimeoutError, match="not answered"):
        share.call("survey", deadline=Deadline(20))


def test_what_is_begun_while_a_share_is_looked_at_is_not_cut_short(
    backend: NfsBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another mount of the same share, whose calls do not wait for this one's."""
    share = backend._shares.of(VOLUME)
    other = {**VOLUME.options, "nfsvers": "4.1"}
    beside = backend._shares.of(dataclasses.replace(VOLUME, options=other))
    assert beside is not share
    repaired: list[str] = []

    def call(self: Share, operation: str, **request: Any) -> Any:
        if operation == "repair":
            repaired.extend(request["tokens"])
            return 1
        beside.copying.add("young")
        sizes = {"total_bytes": 2, "available_bytes": 1}
        found = {"markers": [], "begun": ["old", "young"], "thrown_away": 0}
        return {**found, **sizes, "more": False, "error": ""}

    monkeypatch.setattr(Share, "call", call)
    monkeypatch.setattr(Share, "_require_life", lambda _: None)
    share.survey()
    assert repaired == ["old"]
    assert share.state.thrown_away == 1


def test_a_marker_that_cannot_be_read_hides_no_other(
    backend: NfsBackend, caplog: pytest.LogCaptureFixture
) -> None:
    """Other nodes, of other versions, write them too."""
    good = {
        "state": "ready",
        "id": VOLUME.id,
        "name": VOLUME.name,
        "options": {**VOLUME.options},
        "created_at": VOLUME.created_at,
        "requested": {},
    }
    bad = [{"state": "ready"}, {**good, "id": "no id"}, {**good, "options": 7}]
    backend._shares.of(VOLUME).state = ShareState(state="ok", markers=[*bad, good])
    for _ in range(2):
        assert [each.name for each in backend.discover()] == ["v"]
    assert len(caplog.messages) == len(bad)


def test_trash_that_stays_on_one_share_stays_on_no_other(
    backend: NfsBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = dataclasses.replace(VOLUME, options={**VOLUME.options, "share": "/y"})
    for volume in (VOLUME, other):
        share = backend._shares.of(volume)
        share.state = ShareState(state="ok", markers=[], thrown_away=1)

    def empty_trash(share: Share, _: object) -> int:
        if share.export.share == "/x":
            raise NfsTimeoutError("no answer", "/x")
        return 3

    monkeypatch.setattr(Share, "empty_trash", empty_trash)
    assert backend.collect_garbage(deadline_s=10) == 3


def test_a_creation_without_a_server_has_nothing_to_undo(tmp_path: Path) -> None:
    backend = NfsBackend(tmp_path, node="node")
    for options in ({}, {"server": "192.0.2.1"}, {"mountMode": "direct"}):
        unfinished = dataclasses.replace(VOLUME, options=options)
        backend.discard(unfinished, deadline_s=1)
        with pytest.raises(InvalidRequestError, match="needs the option"):
            backend.require_creatable(unfinished, filled=False)
    assert backend.storages() == []


def test_a_share_that_was_never_there_is_not_watched_after_a_refused_creation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else `remora status` told of each misspelt server until a restart."""
    monkeypatch.setattr(Share, "start", lambda _: None)
    backend = NfsBackend(tmp_path, node="node")
    options = {**backend.default_options(), **VOLUME.options}

    def silent(*_: Any, **__: Any) -> None:
        raise NfsTimeoutError("no answer", "192.0.2.1:/x")

    def unreachable(*_: Any, **__: Any) -> None:
        raise NfsError("UNREACHABLE", "no answer", "192.0.2.1:/x")

    volume = dataclasses.replace(VOLUME, options=options)
    for answer in (silent, unreachable):
        monkeypatch.setattr(Share, "call", answer)
        with pytest.raises(RemoraError):
            backend.create(volume, deadline_s=1)
        with pytest.raises(RemoraError):
            backend.discard(volume, deadline_s=1)
        assert backend.storages() == []
