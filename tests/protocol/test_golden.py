"""Requests exactly as engines send them, and full answers."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest

from tests.protocol import client
from tests.protocol.node import Node

pytestmark = pytest.mark.xdist_group("protocol-golden")

# 20.10 up to 23.0.6 sends an empty Host; later engines this one.
HOSTS = ("", "plugin.moby.localhost")
CONTENT_TYPE = "application/vnd.docker.plugins.v1.2+json"
# Go parses with time.RFC3339; one time it cannot parse fails the engine's whole List.
RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
MOUNT_ID = "8f0c3f4fd7a1b7b3a6cf5b41e3ab6f31f5c5d4e2b1a09f8e7d6c5b4a39281706"
ANSWER_HEADERS = {"connection", "content-length", "content-type", "date", "server"}


def ask(node: Node, call: str, body: bytes, *, host: str = "") -> client.Answer:
    """Return the answer to an engine's request; what every answer must hold is held."""
    received = node.send(client.engine_request(call, body, host=host))
    answer = client.parse(received)
    assert (answer.version, answer.status) == ("HTTP/1.1", 200)
    assert answer.headers.keys() == ANSWER_HEADERS
    assert answer.headers["connection"] == "close"
    assert answer.headers["content-type"] == CONTENT_TYPE
    assert b"\n" not in answer.body
    return answer


@pytest.mark.parametrize("host", HOSTS)
def test_the_nine_calls_of_a_volumes_life(node: Node, host: str) -> None:
    name = f"golden{HOSTS.index(host)}"
    quoted = f'"Name":"{name}"'.encode()

    def body_of(call: str, body: bytes) -> bytes:
        return ask(node, call, body, host=host).body

    assert body_of("Plugin.Activate", b"") == b'{"Implements":["VolumeDriver"]}'
    assert (
        body_of("VolumeDriver.Capabilities", b"{}\n")
        == b'{"Capabilities":{"Scope":"local"}}'
    )
    create = b"{%s,%s}\n" % (quoted, b'"Opts":null')
    assert body_of("VolumeDriver.Create", create) == b"{}"
    named = b"{%s}\n" % quoted
    mount = b'{%s,"ID":"%s"}\n' % (quoted, MOUNT_ID.encode())
    mountpoint = str(node.mount_dir / node.get(name)["Status"]["id"])
    shown = b'{"Mountpoint":"%s"}' % mountpoint.encode()
    assert body_of("VolumeDriver.Path", named) == shown
    assert body_of("VolumeDriver.Mount", mount) == shown
    assert node.mounts() == [mountpoint.rpartition("/")[2]]
    assert body_of("VolumeDriver.Path", named) == shown
    got = ask(node, "VolumeDriver.Get", named, host=host).json()
    assert got["Volume"]["Mountpoint"] == mountpoint
    listed = ask(node, "VolumeDriver.List", b"{}\n", host=host).json()
    volume = {"Name": name, "Mountpoint": mountpoint}
    volume["CreatedAt"] = got["Volume"]["CreatedAt"]
    assert listed == {"Volumes": [volume]}
    assert body_of("VolumeDriver.Unmount", mount) == b"{}"
    assert node.mounts() == []
    assert body_of("VolumeDriver.Remove", named) == b"{}"
    assert body_of("VolumeDriver.List", b"{}\n") == b'{"Volumes":[]}'


def test_get_answers_no_more_and_no_less_than_the_engine_reads(node: Node) -> None:
    node.create("shape", mode="0700")
    volume = node.get("shape")
    assert volume.keys() == {"Name", "Mountpoint", "CreatedAt", "Status"}
    assert volume["Name"] == "shape"
    # Also while it is not mounted: "" would make `rm -rf "$path"/*` one of the root.
    assert volume["Mountpoint"] == str(node.mount_dir / volume["Status"]["id"])
    assert not node.path(volume["Mountpoint"]).exists()
    status = volume["Status"]
    assert status["backend"] == "rsync"
    assert status["options"]["mode"] == "0700"
    assert status["references"] == {"live": 0, "inherited": 0}
    node.ok("Remove", Name="shape")


def test_created_at_is_rfc_3339_and_now(node: Node) -> None:
    node.create("dated")
    [listed] = node.ok("List")["Volumes"]
    created_at = node.get("dated")["CreatedAt"]
    assert listed["CreatedAt"] == created_at
    assert RFC_3339.fullmatch(created_at)
    age = datetime.now(UTC) - datetime.fromisoformat(created_at)
    assert timedelta(seconds=-1) < age < timedelta(minutes=5)
    node.ok("Remove", Name="dated")


def test_options_arrive_and_decide(node: Node) -> None:
    body = b'{"Name":"opts","Opts":{"mode":"0750","uid":"1000","GID":"1001"}}\n'
    assert ask(node, "VolumeDriver.Create", body).body == b"{}"
    live = node.path(node.pool / "volumes" / node.get("opts")["Status"]["id"] / "live")
    found = live.stat()
    assert (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (0o750, 1000, 1001)
    node.ok("Remove", Name="opts")


@pytest.mark.parametrize(
    "body",
    [
        b'{"Name":"odd"}',
        b'{"Name":"odd"}\n',
        b'{"Name":"odd","Opts":{}}\n',
        b'{"Name":"odd","Opts":null}\n',
        b' {"Opts" : null ,\r\n\t"Name" : "odd" }\r\n\r\n',
        b'{"Name":"odd","Opts":null,"Labels":{"a":"b"},"Future":[1,{"x":null}]}\n',
        b'{"Name":"\\u006fdd"}\n',
    ],
)
def test_every_spelling_of_a_create(node: Node, body: bytes) -> None:
    assert ask(node, "VolumeDriver.Create", body).body == b"{}"
    assert node.names() == ["odd"]
    node.ok("Remove", Name="odd")
    assert node.stored() == []


def test_the_oldest_engines_send_no_mount_id(node: Node) -> None:
    volume_id = node.create("old")
    body = b'{"Name":"old"}\n'
    mounted = ask(node, "VolumeDriver.Mount", body).json()
    assert mounted == {"Mountpoint": str(node.mount_dir / volume_id)}
    assert node.references("old") == (1, 0)
    assert ask(node, "VolumeDriver.Unmount", body).body == b"{}"
    assert node.mounts() == []
    node.ok("Remove", Name="old")


def test_anonymous_volumes_have_64_digits(node: Node) -> None:
    node.create(MOUNT_ID)
    assert node.names() == [MOUNT_ID]
    node.ok("Remove", Name=MOUNT_ID)


@pytest.mark.parametrize(
    ("call", "body", "code"),
    [
        ("Create", b'{"Name":"../x","Opts":null}\n', "invalid-request"),
        ("Create", b'{"Name":"x","Opts":{"sise":"1"}}\n', "invalid-request"),
        ("Create", b'{"Name":"x","Opts":{"mode":1}}\n', "invalid-request"),
        ("Mount", b'{"Name":"none","ID":"a"}\n', "volume-not-found"),
        ("Get", b'{"Name":"none"}\n', "volume-not-found"),
        ("Path", b'{"Name":"none"}\n', "volume-not-found"),
        ("Unmount", b'{"Name":5,"ID":"a"}\n', "invalid-request"),
        ("Remove", b'{"Name":["x"]}\n', "invalid-request"),
    ],
)
def test_errors_are_one_line_with_their_code(
    node: Node, call: str, body: bytes, code: str
) -> None:
    error = ask(node, f"VolumeDriver.{call}", body).error
    assert error.startswith(f"{code}: ")
    assert error.isprintable()


def test_an_unknown_option_is_told_the_valid_ones(node: Node) -> None:
    error = node.refused("Create", Name="x", Opts={"sise": "1G"})
    assert "'sise'" in error
    assert "valid options: backend, consistency, failover, fence, from, gid," in error


# Podman: another Host, a Content-Type, Accept-Encoding; it calls Path.
PODMAN = (
    "POST /{} HTTP/1.1\r\nHost: plugin\r\nUser-Agent: Go-http-client/1.1\r\n"
    "Content-Length: {}\r\nContent-Type: application/vnd.docker.plugins.v1.1+json\r\n"
    "Accept-Encoding: gzip\r\n\r\n{}"
)


def podman(call: str, body: str) -> bytes:
    return PODMAN.format(call, len(body), body).encode()


def test_podman_is_answered_and_may_hang_up_at_activation(node: Node) -> None:
    for _ in range(50):
        with client.connect(node.plugin_socket) as leaving:
            leaving.sendall(podman("Plugin.Activate", ""))
    calls = {
        "Create": '{"Name":"pod"}\n',
        "Mount": '{"Name":"pod","ID":"p"}\n',
        "Path": '{"Name":"pod"}\n',
        "Unmount": '{"Name":"pod","ID":"p"}\n',
        "Remove": '{"Name":"pod"}\n',
    }
    activation = client.parse(node.send(podman("Plugin.Activate", "")))
    assert activation.json() == {"Implements": ["VolumeDriver"]}
    for call, body in calls.items():
        answer = client.parse(node.send(podman(f"VolumeDriver.{call}", body)))
        assert (answer.status, answer.error) == (200, "")
        assert "content-encoding" not in answer.headers


def test_other_clients_may_send_chunks_or_expect_100(node: Node) -> None:
    start = "POST /VolumeDriver.Create HTTP/1.1\r\nHost: x\r\n"
    chunks = '9\r\n{"Name":"\r\n3\r\nc"}\r\n0\r\n\r\n'
    sent = f"{start}Transfer-Encoding: chunked\r\n\r\n{chunks}".encode()
    assert client.parse(node.send(sent)).json() == {}
    sent = f"{start}Expect: 100-continue\r\nContent-Length: 12\r\n\r\n".encode()
    received = node.send(sent + b'{"Name":"e"}')
    assert received.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
    assert node.names() == ["c", "e"]
    for name in ("c", "e"):
        node.ok("Remove", Name=name)
