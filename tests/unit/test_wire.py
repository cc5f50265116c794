"""Docker's protocol as bytes: whatever comes in, and what goes out."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.errors import InvalidRequestError, RemoraError
from plugin.api.docker import wire
from plugin.limits import REQUEST_SIZE_MAX
from plugin.model import check_mount_id, check_name

CALLS = (wire.CreateCall, wire.MountCall, wire.NameCall)
PARSERS = [partial(wire.parse, each) for each in CALLS]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
keys = st.sampled_from(["Name", "ID", "Opts", "name", "Future"])


@pytest.mark.parametrize("parse", PARSERS)
@given(body=st.binary())
def test_any_bytes_are_a_call_or_an_invalid_request(parse: Any, body: bytes) -> None:
    try:
        call = parse(body)
    except InvalidRequestError as error:
        assert str(error).isprintable()
    else:
        assert isinstance(call.name, str)


@pytest.mark.parametrize("parse", PARSERS)
@settings(max_examples=40)
@given(value=json_values | st.dictionaries(keys, json_values))
def test_any_json_is_a_call_or_an_invalid_request(parse: Any, value: object) -> None:
    try:
        call = parse(json.dumps(value).encode())
    except InvalidRequestError as error:
        assert str(error).isprintable()
    else:
        assert call.name == value["Name"]


@given(name=st.text(), options=st.dictionaries(st.text(), st.text()) | st.none())
def test_a_create_means_what_was_sent(
    name: str, options: dict[str, str] | None
) -> None:
    body = json.dumps({"Name": name, "Opts": options, "Extra": [name]}).encode()
    call = wire.parse(wire.CreateCall, body + b"\n")
    assert (call.name, call.options) == (name, options)


@given(name=st.text(), mount_id=st.text())
def test_a_mount_means_what_was_sent(name: str, mount_id: str) -> None:
    body = json.dumps({"Name": name, "ID": mount_id}).encode()
    call = wire.parse(wire.MountCall, body)
    assert (call.name, call.mount_id) == (name, mount_id)


def test_what_old_engines_leave_out_has_a_meaning() -> None:
    assert wire.parse(wire.MountCall, b'{"Name":"x"}').mount_id == ""
    assert wire.parse(wire.CreateCall, b'{"Name":"x"}').options is None


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize("body", [b"", b" ", b"\n", b"\r\n\t "])
def test_no_body_is_an_error_of_its_own(parse: Any, body: bytes) -> None:
    with pytest.raises(wire.EmptyBodyError, match="had no body"):
        parse(body)


@pytest.mark.parametrize("parse", PARSERS)
def test_a_body_has_a_largest_size(parse: Any) -> None:
    body = b'{"Name":"x"}'.ljust(REQUEST_SIZE_MAX)
    assert parse(body).name == "x"
    with pytest.raises(InvalidRequestError, match=f"has {REQUEST_SIZE_MAX + 1} bytes"):
        parse(body + b" ")


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_deep_nesting_is_an_invalid_request(parse: Any, opening: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        parse(b'{"Name":"x","Future":' + opening * 40_000)


def test_render_activation_and_capabilities() -> None:
    assert wire.render_empty() == b"{}"
    assert wire.render_activation() == b'{"Implements":["VolumeDriver"]}'
    assert wire.render_capabilities("global") == b'{"Capabilities":{"Scope":"global"}}'


@given(st.text(st.characters(codec="utf-8")))
def test_a_mountpoint_goes_out_as_it_is(mountpoint: str) -> None:
    assert json.loads(wire.render_mountpoint(mountpoint)) == {"Mountpoint": mountpoint}


def test_a_volume_has_no_empty_fields() -> None:
    """An empty CreatedAt would fail the engine's whole List."""
    assert wire.render_volume("x", "", "", {}) == b'{"Volume":{"Name":"x"}}'
    full = wire.render_volume("x", "/m", "2026-01-02T03:04:05Z", {"a": 1})
    assert json.loads(full) == {
        "Volume": {
            "Name": "x",
            "Mountpoint": "/m",
            "CreatedAt": "2026-01-02T03:04:05Z",
            "Status": {"a": 1},
        }
    }


def test_a_list_is_one_even_when_it_is_empty() -> None:
    assert wire.render_list([]) == b'{"Volumes":[]}'
    rows = [("a", "", "2026-01-02T03:04:05Z"), ("b", "/m", "")]
    assert json.loads(wire.render_list(rows)) == {
        "Volumes": [
            {"Name": "a", "CreatedAt": "2026-01-02T03:04:05Z"},
            {"Name": "b", "Mountpoint": "/m"},
        ]
    }


@given(cause=st.text(), hint=st.text())
def test_an_error_goes_out_as_one_line(cause: str, hint: str) -> None:
    """Lone surrogates, which JSON lets a client send, included."""
    rendered = wire.render_error(InvalidRequestError(cause, hint=hint))
    shown = json.loads(rendered)["Err"]
    assert shown.startswith("invalid-request: ")
    assert shown.isprintable()
    assert len(shown) < 2100


def test_an_error_shows_code_cause_and_hint() -> None:
    error = RemoraError("it\nbroke", hint="mend it")
    shown = json.loads(wire.render_error(error))
    assert shown == {"Err": "internal: it\\nbroke (hint: mend it)"}


LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
valid_names = st.builds(
    str.__add__, st.sampled_from(LETTERS), st.text(LETTERS + "_.-", max_size=254)
)


@given(valid_names)
def test_names_of_the_documented_alphabet_are_names(name: str) -> None:
    assert check_name(name) == name


@given(st.text(max_size=300) | st.text(LETTERS + "_.-/ \n:", max_size=300))
def test_any_other_text_is_no_name(name: str) -> None:
    valid = (
        0 < len(name) <= 255
        and name[0] in LETTERS
        and all(character in LETTERS + "_.-" for character in name)
    )
    try:
        check_name(name)
    except InvalidRequestError as error:
        assert not valid
        assert str(error).isprintable()
        assert len(str(error)) < 400
    else:
        assert valid


def test_a_mount_id_has_a_longest_length() -> None:
    assert check_mount_id("") == ""
    assert check_mount_id("x" * 256) == "x" * 256
    with pytest.raises(InvalidRequestError, match="has 257 characters"):
        check_mount_id("x" * 257)
