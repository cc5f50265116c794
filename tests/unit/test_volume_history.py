"""What is made of the records of epochs, and of what several nodes tell of a volume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest

from backends.errors import InvalidRequestError, RemoraError
from plugin.errors import VolumeNotFoundError
from plugin.events.log import Event, EventsAnswer
from plugin.ownership.state import EMPTY, Commit, Epoch, Head, Lineage
from plugin.volumes.history import VolumeHistory, epoch_rows, merged
from tests.support.world import World

BEGAN = "2026-11-20T10:00:00Z"
RELEASED = "2026-11-20T11:00:00Z"


def rows(head: Head, **epochs: Epoch) -> dict[int, dict[str, Any]]:
    lineage = Lineage({int(key[1:]): epoch for key, epoch in epochs.items()})
    return {each["epoch"]: each for each in epoch_rows(head, lineage, str.upper)}


def test_a_record_of_an_older_version_is_read() -> None:
    old = msgspec.json.decode(b'{"base":[1,4],"owner":"alpha"}', type=Epoch)
    assert old == Epoch(Commit(1, 4), "alpha")
    row = rows(Head(epoch=2, phase="idle"), _2=old)[2]
    assert row == {
        "epoch": 2,
        "owner": "ALPHA",
        "began_at": "",
        "base": "1.4",
        "lost": "",
        "ended": "unknown",
        "released_at": "",
    }


def test_an_epoch_ends_by_its_release_or_not_at_all() -> None:
    found = rows(
        Head(epoch=9, phase="owned"),
        _1=Epoch(EMPTY, "a", BEGAN),
        _3=Epoch(Commit(1, 4), "b", BEGAN, None, RELEASED),
        _4=Epoch(Commit(3, 2), "a", BEGAN, Commit(3, 5)),
        _8=Epoch(Commit(4, 1), "b"),
        _9=Epoch(Commit(8, 1), "c", BEGAN, None, RELEASED),
    )
    ends = {number: row["ended"] for number, row in found.items()}
    assert ends == {
        1: "released",
        3: "not-released",
        4: "unknown",
        8: "released",
        9: "owned",
    }
    assert found[1]["released_at"] == found[8]["released_at"] == RELEASED
    assert (found[4]["lost"], found[4]["base"]) == ("3.5", "3.2")


@pytest.mark.parametrize(
    ("head", "ended"),
    [
        (Head(epoch=3, phase="owned"), "owned"),
        (Head(epoch=3, phase="idle", released_at=RELEASED), "released"),
        (Head(epoch=4, phase="recovering", released_at=RELEASED), "released"),
        (Head(epoch=5, phase="idle", released_at=RELEASED), "released"),
        (Head(epoch=4, phase="recovering"), "not-released"),
        (Head(epoch=4, phase="idle"), "not-released"),
    ],
)
def test_how_the_last_epoch_stands(head: Head, ended: str) -> None:
    """Between the two reads another one may have begun: it is not shown yet."""
    found = rows(
        head,
        _3=Epoch(EMPTY, "a", BEGAN),
        _6=Epoch(Commit(3, 1), "b", BEGAN),
    )
    assert {number: row["ended"] for number, row in found.items()} == {3: ended}


def at(second: int, kind: str = "owned") -> Event:
    return Event(f"2026-11-20T10:00:{second:02}.000Z", kind, {})


def told(*seconds: int, cut: bool = False) -> EventsAnswer:
    return EventsAnswer([at(each) for each in seconds], cut=cut)


def shown(parts: Mapping[str, EventsAnswer], limit: int) -> list[tuple[str, int]]:
    return [(each["node"], int(each["at"][17:19])) for each in merged(parts, limit)]


def test_events_are_merged_by_their_time() -> None:
    parts = {"a": told(9, 5, 1), "b": told(7, 6), "c": told()}
    assert shown(parts, 10) == [("a", 1), ("a", 5), ("b", 6), ("b", 7), ("a", 9)]
    assert shown(parts, 2) == [("b", 7), ("a", 9)]


def test_a_clock_that_was_set_back_does_not_turn_a_nodes_own_order() -> None:
    kinds = [at(3, "third"), at(9, "second"), at(8, "first")]
    found = merged({"a": EventsAnswer(kinds), "b": told(5)}, 10)
    own = [each["kind"] for each in found if each["node"] == "a"]
    assert own == ["first", "second", "third"]


def test_before_an_answer_that_was_cut_nothing_is_shown() -> None:
    parts = {"a": told(9, 5, 1), "b": told(7, 4, cut=True)}
    assert shown(parts, 10) == [("b", 4), ("a", 5), ("b", 7), ("a", 9)]


class Others:
    """Answers for nodes, without a network."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def call_all(
        self,
        node_ids: Sequence[str],
        request: str,
        body: Mapping[str, Any],
        *,
        deadline_s: float,
    ) -> dict[str, Any]:
        assert request == "events"
        self.asked += node_ids
        return {each: self.answers[each] for each in node_ids}


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"events": "none"},
        {"events": [{"at": "yesterday", "kind": "owned", "facts": {}}]},
        {"events": [{"at": at(1).at, "kind": "\x1b[2J", "facts": {}}]},
        {"events": [{"at": at(1).at, "kind": "owned", "facts": {"\x1b": 1}}]},
        {"events": [{"at": at(1).at, "kind": "owned", "facts": {"epoch": []}}]},
    ],
)
def test_an_answer_that_is_none_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    found = asked(world, monkeypatch, answer)
    assert found["events"] == []
    [silent] = found["silent"]
    assert silent["node"] == "beta"
    assert silent["cause"].startswith("its answer cannot be read")


def test_what_another_node_writes_is_shown_harmlessly(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"path": "\x1b[2Ja\nb", "sender": "beta"}
    event = {"at": at(1).at, "kind": "set-apart", "facts": facts}
    found = asked(world, monkeypatch, {"events": [event] * 60, "cut": False})
    assert len(found["events"]) == 50
    assert found["events"][0]["facts"] == {"path": "\\x1b[2Ja\\nb", "sender": "beta"}


def asked(world: World, monkeypatch: pytest.MonkeyPatch, answer: Any) -> Any:
    """Return the events of a volume of which node `beta` tells *answer*."""
    world.volumes.creation.create("data", {})
    events = world.events
    history = VolumeHistory(
        world.volumes.views, world.ownership, events, Others(beta=answer)
    )
    monkeypatch.setattr(VolumeHistory, "_others", lambda *_: ["beta"])
    monkeypatch.setattr(world.ownership.nodes, "all", lambda: [living("beta")])
    return history.events("data", 50)


def living(name: str) -> Any:
    from types import SimpleNamespace

    return SimpleNamespace(record=SimpleNamespace(id=name, name=name), alive=True)


def test_alone(world: World) -> None:
    """A removed volume is known until its events are pushed out."""
    history = world.volumes.history
    with pytest.raises(VolumeNotFoundError):
        history.events("data", 50)
    world.volumes.creation.create("data", {})
    assert history.epochs("data")["epochs"] == []
    with pytest.raises(InvalidRequestError, match="0 is no number of events"):
        history.events("data", 0)
    world.volumes.removal.remove("data")
    found = history.events("data", 50)
    assert [each["kind"] for each in found["events"]] == ["removed"]
    assert (found["silent"], found["cut"]) == ([], [])
    with pytest.raises(VolumeNotFoundError):
        history.epochs("data")


def test_an_error_of_a_node_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = asked(world, monkeypatch, RemoraError("no connection"))
    assert found["silent"] == [{"node": "beta", "cause": "no connection"}]
