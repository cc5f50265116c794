"""The events of a node: what is kept, for how long, and what other nodes are told."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from backends.base import Volume
from backends.errors import InvalidRequestError
from plugin.errors import StoreError
from plugin.events import log as module
from plugin.events.log import (
    FILE_NAME,
    LIMIT_MAX,
    OF_VOLUME_MAX,
    Events,
    EventsRequest,
)
from plugin.peers.lines import LINE_LENGTH_MAX, encode, read_request
from tests.support.processes import descriptors


def volume(name: str) -> Volume:
    return Volume(id=f"id-of-{name}", name=name, options={}, created_at="")


DATA = volume("data")


@pytest.fixture
def events(tmp_path: Path) -> Iterator[Events]:
    made = Events(tmp_path)
    yield made
    made.close()


def kinds(events: Events, of: Volume = DATA) -> list[str]:
    return [each.kind for each in events.newest(of.id, LIMIT_MAX)]


def test_the_newest_comes_first_with_its_facts(events: Events) -> None:
    events.add(DATA, "owned", epoch=3, base="2.9", lost="")
    events.add(volume("other"), "owned", epoch=1)
    events.add(DATA, "released", epoch=3, commit="3.1")
    released, owned = events.newest(DATA.id, 10)
    assert (released.kind, released.facts) == (
        "released",
        {"epoch": 3, "commit": "3.1"},
    )
    assert (owned.kind, owned.facts) == ("owned", {"epoch": 3, "base": "2.9"})
    assert owned.at <= released.at
    assert events.newest(DATA.id, 1) == [released]


def test_what_was_not_closed_is_there_again(events: Events, tmp_path: Path) -> None:
    events.add(DATA, "owned", epoch=1)
    again = Events(tmp_path)
    assert kinds(again) == ["owned"]
    again.close()


def test_commits_push_out_commits_alone(events: Events) -> None:
    events.add(DATA, "owned", epoch=1)
    for number in range(OF_VOLUME_MAX + 7):
        events.add(DATA, "committed", commit=f"1.{number}")
    found = events.newest(DATA.id, 2 * LIMIT_MAX)
    assert len(found) == OF_VOLUME_MAX + 1
    assert found[0].facts["commit"] == f"1.{OF_VOLUME_MAX + 6}"
    assert found[-2].facts["commit"] == "1.7"
    assert found[-1].kind == "owned"


def test_all_volumes_together_are_bounded(
    events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IN_ALL_MAX", 150)
    monkeypatch.setattr(module, "_TRIM_EVERY", 100)
    events.add(DATA, "owned", epoch=1)
    for number in range(399):
        events.add(volume(f"{number}"), "committed", commit="1.1")
    assert kinds(events) == ["owned"]
    assert kinds(events, volume("248")) == []
    assert kinds(events, volume("249")) == ["committed"]
    for number in range(200):
        events.add(volume(f"{number}"), "owned", epoch=1)
    assert kinds(events) == []


def test_a_removed_volume_is_known_by_its_name(events: Events) -> None:
    assert events.id_of("data") is None
    events.add(Volume(id="old", name="data", options={}, created_at=""), "removed")
    events.add(DATA, "removed")
    assert events.id_of("data") == DATA.id


def test_what_comes_from_outside_is_one_short_line(events: Events) -> None:
    events.add(DATA, "set-apart", path="a\nb" + "x" * 5000)
    [event] = events.newest(DATA.id, 1)
    assert str(event.facts["path"]).startswith("a\\nbxxx")
    assert len(str(event.facts["path"])) == 400


def test_an_answer_fits_into_a_line(events: Events) -> None:
    for number in range(400):
        events.add(DATA, "owned", epoch=number, path='"' * 200)
    answer = events.answer("node", EventsRequest(DATA.id, LIMIT_MAX))
    assert len(encode({"id": 1, "result": answer})) < LINE_LENGTH_MAX
    assert answer["cut"] is True
    told = [each["facts"]["epoch"] for each in answer["events"]]
    assert 50 < len(told) < 400
    assert told == list(range(399, 399 - len(told), -1))
    few = events.answer("node", EventsRequest(DATA.id, 2))
    assert (len(few["events"]), few["cut"]) == (2, False)


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"volume": DATA.id, "limit": 0},
        {"volume": DATA.id, "limit": LIMIT_MAX + 1},
        {"volume": "v", "limit": 1},
        {"volume": f"../{DATA.id}", "limit": 1},
        {"volume": 7, "limit": 1},
    ],
)
def test_a_wrong_request_is_refused(message: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError, match="the request cannot be read"):
        read_request(message, EventsRequest)


@pytest.mark.parametrize("newer", [False, True])
def test_a_file_of_no_use_is_set_aside(tmp_path: Path, newer: bool) -> None:
    path = tmp_path / FILE_NAME
    if newer:
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA user_version = 99")
        connection.close()
    else:
        path.write_bytes(b"no database" * 1000)
    before = path.read_bytes()
    events = Events(tmp_path)
    events.add(DATA, "owned", epoch=1)
    events.close()
    again = Events(tmp_path)
    assert kinds(again) == ["owned"]
    again.close()
    aside = (tmp_path / f"{FILE_NAME}.aside").read_bytes()
    assert aside[100:] == before[100:]


def test_a_passing_error_sets_nothing_aside(tmp_path: Path) -> None:
    events = Events(tmp_path)
    events.add(DATA, "owned", epoch=1)
    events.close()
    with descriptors(0):
        meanwhile = Events(tmp_path)
    meanwhile.add(DATA, "released", epoch=1)
    assert kinds(meanwhile) == ["released"]
    meanwhile.close()
    again = Events(tmp_path)
    assert kinds(again) == ["owned"]
    again.close()
    assert not (tmp_path / f"{FILE_NAME}.aside").exists()


def test_what_cannot_be_kept_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    events = Events(tmp_path)
    other = sqlite3.connect(tmp_path / FILE_NAME)
    other.execute("DROP TABLE events")
    events.add(DATA, "owned", epoch=1)
    other.close()
    events.close()
    events.add(DATA, "owned", epoch=1)
    assert caplog.text.count("an event was not kept") == 2
    with pytest.raises(StoreError, match="cannot be read"):
        events.newest(DATA.id, 1)


def test_an_event_is_small(events: Events) -> None:
    """So that the bounds above bound the file as well."""
    events.add(
        DATA, "committed", commit="1234.5678", size_bytes=10**12, holders="x" * 80
    )
    [event] = events.newest(DATA.id, 1)
    assert len(msgspec.json.encode(event)) < 300
