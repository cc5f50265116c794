"""
Requests that no engine sends, and names that engines do pass on.

After each of them the daemon answers as before and nothing has been made.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.protocol import client
from tests.protocol.node import Node

pytestmark = pytest.mark.xdist_group("protocol-hostile")

CREATE = b"POST /VolumeDriver.Create HTTP/1.1\r\nHost: \r\n"
BODY = b'{"Name":"made"}'
GIGABYTE = 10**9
MANY = settings(
    max_examples=150,
    database=None,
    print_blob=True,
    # The daemon is meant to be the same for all examples.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(autouse=True)
def _unharmed(node: Node) -> Iterator[None]:
    """Hold every test to leaving nothing: no record, no directory, no mount."""
    yield
    made = node.names()
    for name in made:
        node.ok("Remove", Name=name)
    assert made == []
    assert node.stored() == []
    assert node.mount_directories() == []
    left = {each.name for each in node.state_dir.iterdir()}
    assert left <= {
        *("lock", "pool", "mounts", "store.db", "store.db-wal", "store.db-shm"),
        *("node.db", "node.db-wal", "node.db-shm"),
        *("events.db", "events.db-wal", "events.db-shm"),
    }
    assert node.call("Capabilities").json() == {"Capabilities": {"Scope": "local"}}


def status_of(node: Node, sent: bytes) -> int:
    """Return the status of the answer to *sent*, which must be refused."""
    return client.parse(node.send(sent)).status


@pytest.mark.parametrize(
    "length",
    [b"abc", b"-1", b"+15", b"0x0f", b"1_5", b"", b" ", b"15, 15", b"15;15", b"\xb2"],
)
def test_content_length_that_is_no_number(node: Node, length: bytes) -> None:
    assert (
        status_of(node, CREATE + b"Content-Length: %s\r\n\r\n" % length + BODY) == 400
    )


@pytest.mark.parametrize("second", [b"15", b"5"])
def test_content_length_given_twice(node: Node, second: bytes) -> None:
    lines = b"Content-Length: 15\r\nContent-Length: %s\r\n\r\n" % second
    assert status_of(node, CREATE + lines + BODY) == 400


@pytest.mark.parametrize("size", [3 * GIGABYTE, 10**23])
def test_a_promised_body_beyond_all_bounds_is_not_waited_for(
    node: Node, size: int
) -> None:
    sent = CREATE + b"Content-Length: %d\r\n\r\n" % size + BODY
    assert status_of(node, sent) == 413


def test_a_body_of_9_mb(node: Node) -> None:
    body = b'{"Name":"made","Opts":{"mode":"' + b"7" * 9_000_000 + b'"}}'
    assert status_of(node, client.engine_request("VolumeDriver.Create", body)) == 413


def test_options_of_1_mb_are_refused_in_one_line(node: Node) -> None:
    error = node.refused("Create", Name="made", Opts={"mode": "7" * 1_000_000})
    assert error.startswith("invalid-request: the request has 1000")
    assert "at most 262144" in error


def test_a_truncated_body(node: Node) -> None:
    sent = CREATE + b"Content-Length: 100\r\n\r\n" + BODY
    assert node.send(sent, end=True) == b""


@pytest.mark.parametrize(
    ("chunks", "status"),
    [
        (b"zz\r\n" + BODY + b"\r\n0\r\n\r\n", 400),
        (b"-5\r\n" + BODY + b"\r\n0\r\n\r\n", 400),
        (b"3\r\n" + BODY + b"\r\n0\r\n\r\n", 400),
        (b"%x\r\n" % GIGABYTE, 413),
    ],
)
def test_chunks_that_are_none(node: Node, chunks: bytes, status: int) -> None:
    sent = CREATE + b"Transfer-Encoding: chunked\r\n\r\n" + chunks
    with client.connect(node.plugin_socket) as hostile:
        hostile.sendall(sent)
        # A chunk of a gigabyte is refused when 8 MiB of it have come.
        if status == 413:
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                hostile.sendall(b"7" * 40_000_000)
        assert client.parse(client.read_all(hostile)).status == status


def test_an_unknown_transfer_encoding(node: Node) -> None:
    sent = CREATE + b"Transfer-Encoding: gzip\r\nContent-Length: 15\r\n\r\n" + BODY
    assert status_of(node, sent) == 501


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x00\x01\x02\r\n\r\n", 400),
        (b"\xff" * 2000 + b"\r\n\r\n", 400),
        (b"POST\r\n\r\n", 400),
        (b"POST /VolumeDriver.Create HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"POST /VolumeDriver.Create HTTP/1.1\r\n folded: x\r\n\r\n", 400),
        (b"POST /VolumeDriver.Create HTTP/1.1\r\nX: a\rb\r\n\r\n", 400),
        (b"POST /VolumeDriver.Create HTTP/1.1\r\nX: a\x00b\r\n\r\n", 400),
        (b"POST /\xff\xfe HTTP/1.1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nX: " + b"a" * 300_000 + b"\r\n\r\n", 431),
    ],
)
def test_garbage(node: Node, sent: bytes, status: int) -> None:
    assert status_of(node, sent) == status


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS client's hello
        b"\r\n" * 1000,
        b"",
        b"POST http://[/VolumeDriver.Create HTTP/1.1\r\n",
    ],
)
def test_garbage_that_never_ends_a_head(node: Node, sent: bytes) -> None:
    assert node.send(sent, end=True) == b""


@MANY
@given(body=st.binary(max_size=200))
def test_any_bytes_as_a_body_are_refused_in_one_line(node: Node, body: bytes) -> None:
    answer = client.parse(node.send(client.engine_request("VolumeDriver.Mount", body)))
    assert answer.status == 200
    assert answer.error.isprintable()
    assert answer.error.startswith(("invalid-request: ", "volume-not-found: "))


@MANY
@given(sent=st.binary(min_size=1, max_size=300))
def test_any_bytes_as_a_request(node: Node, sent: bytes) -> None:
    received = node.send(sent, end=True)
    assert not received or client.parse(received).status >= 400


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        (b"GET", b"/VolumeDriver.List", 405),
        (b"PUT", b"/VolumeDriver.Create", 405),
        (b"DELETE", b"/VolumeDriver.Create", 405),
        (b"BREW", b"/VolumeDriver.Create", 405),
        (b"POST", b"/VolumeDriver.Created", 404),
        (b"POST", b"/volumedriver.create", 404),
        (b"POST", b"/VolumeDriver.Create/", 404),
        (b"POST", b"/VolumeDriver.Create%00", 404),
        (b"POST", b"/VolumeDriver.Create%0d%0aX:%20y", 404),
        (b"POST", b"/../VolumeDriver.Create", 404),
        (b"POST", b"/v1/volumes", 404),
        (b"GET", b"/metrics", 404),
        (b"POST", b"/", 404),
        (b"POST", b"*", 404),
    ],
)
def test_other_methods_and_paths(
    node: Node, method: bytes, target: bytes, status: int
) -> None:
    head = b"%s %s HTTP/1.1\r\nHost: \r\nContent-Length: 15\r\n\r\n" % (method, target)
    answer = client.parse(node.send(head + BODY))
    assert answer.status == status
    assert b"X" not in b"".join(name.encode() for name in answer.headers)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 200_000,
        b'{"Name":"made","Future":' + b"[" * 200_000,
        b'{"Name":"made","Future":' + b'{"a":' * 40_000,
        b'{"Name":"made","Future":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"Name":"ma\xff\xfede"}',
        b'{"Name":"made","Opts":{"\xc3\x28":"x"}}',
        b'\xff\xfe{\x00"\x00',
        b'\xef\xbb\xbf{"Name":"made"}',
        b'{"Name":"made"} {"Name":"made"}',
        b'{"Name":"made"',
        b'{"Name":"\\ud800"}',
        b'{"Name":"made","Opts":[]}',
        b'{"Name":"made","Opts":{"mode":null}}',
        b'{"Name":"made","Opts":{"mode":{"a":"b"}}}',
        b'{"Name":null}',
        b'{"Name":{}}',
        b'{"Name":1e999}',
        b"{}",
        b"null",
        b"15",
        b'"made"',
    ],
)
def test_json_that_is_no_create(node: Node, body: bytes) -> None:
    answer = client.parse(node.send(client.engine_request("VolumeDriver.Create", body)))
    assert answer.status == 200
    assert answer.error.startswith("invalid-request: the request cannot be read: ")
    assert answer.error.isprintable()


# Those that reached Create through dockerd (docker-protocol.md), and some more.
HOSTILE_NAMES = [
    *("", ".", "..", "../../x", "a/b", "/etc", "a\\b", "with space", " x", "x "),
    *("line\nbreak", "x\n", "\r\nErr: forged", "a:b", "-x", "_x", ".x", "%2e%2e"),
    *("ümlaut", "名前", "x\u200b", "\u202ex", "\ufeffx", "٣", "a\x00b", "\x1b[31m"),
    *("x" * 256, "x" * 300, "x" * 100_000, "x'", 'x"', "$(id)", "x;y", "*", "~"),
]


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=lambda name: ascii(name)[:24])
def test_names_that_are_none(node: Node, name: str) -> None:
    assert node.refused("Create", Name=name).startswith("invalid-request: ")
    assert node.refused("Mount", Name=name, ID="a").startswith("invalid-request: ")
    for call in ("Get", "Path"):
        assert node.refused(call, Name=name).startswith("volume-not-found: ")


def calls(node: Node) -> list[dict[str, Any]]:
    """Return the log's lines about calls; the reconciler writes others between."""
    return [each for each in node.log_lines() if each["event"] == "call"]


@pytest.mark.parametrize("name", ["x\nlevel=error", "x" * 300])
def test_a_name_cannot_forge_a_log_line(node: Node, name: str) -> None:
    before = len(calls(node))
    node.refused("Create", Name=name)
    [line] = calls(node)[before:]
    assert line["op"] == "Create"
    assert line["code"] == "invalid-request"
    assert "\n" not in line["volume"]


def test_65_options(node: Node) -> None:
    error = node.refused("Create", Name="made", Opts={f"o{n}": "" for n in range(65)})
    assert error == "invalid-request: 65 options; at most 64 are read"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"k" * 65: ""}, "its name has 65 characters"),
        ({"mode": "7" * 4097}, "its value has 4097 characters"),
        ({"": "x"}, "unknown option ''"),
        ({"mode\x00": "0700"}, "unknown option 'mode\\x00'"),
        ({"mode": "0700\x00"}, "option 'mode': must be octal permissions"),
        ({"mode": "0700", "MODE": "0755"}, "option 'mode'"),
        ({"uid": "-1"}, "option 'uid': must be a numeric id"),
        ({"uid": "٣"}, "option 'uid': must be a numeric id"),
        ({"members": "../x"}, "option 'members'"),
        ({"profile": "no\nne"}, "unknown profile 'no\\nne'"),
        ({"backend": "../nfs"}, "unknown backend '../nfs'"),
    ],
)
def test_options_that_are_none(node: Node, options: dict[str, str], told: str) -> None:
    assert told in node.refused("Create", Name="made", Opts=options)


def test_a_newline_in_an_option_forges_nothing(node: Node) -> None:
    forged = '0755\n{"level":"error","event":"forged"}\r\nErr: forged'
    before = len(calls(node))
    for options in ({"mode": forged}, {forged[:60]: "x"}, {"members": forged}):
        received = node.send(
            client.engine_request(
                "VolumeDriver.Create", client.go_json({"Name": "made", "Opts": options})
            )
        )
        answer = client.parse(received)
        assert answer.json().keys() == {"Err"}
        assert answer.error.isprintable()
    lines = calls(node)[before:]
    assert len(lines) == 3
    assert not any(each["event"] == "forged" for each in node.log_lines())
    assert all(each["level"] == "info" for each in lines)


def test_a_mount_id_of_any_length_or_kind_is_not_kept(node: Node) -> None:
    assert "at most 256" in node.refused("Mount", Name="made", ID="i" * 257)
    answer = node.call("Mount", {"Name": "made", "ID": 5})
    assert answer.error.startswith("invalid-request: ")


def test_headers_decide_nothing(node: Node) -> None:
    """A stale Host once made other plugins refuse their engine."""
    for lines in (
        "Host: a b:99999",
        "Host: ../x",
        "Upgrade: h2c\r\nConnection: Upgrade",
    ):
        body = json.dumps({"Name": "none"})
        sent = (
            f"POST /VolumeDriver.Get HTTP/1.1\r\n{lines}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        )
        assert client.parse(node.send(sent.encode())).error.startswith("volume-not-")
