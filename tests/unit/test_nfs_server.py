"""Whether an NFS server is there, and where: what is asked, and what that means."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from backends.nfs import mounting, server
from backends.nfs import options as nfs_options
from backends.nfs.errors import NfsError
from backends.nfs.options import Export
from backends.system.clock import Deadline
from backends.system.mountinfo import MountEntry


def export(entries: str, version: str = "4") -> Export:
    return Export("127.0.0.1", "/x", version, entries)


@pytest.fixture
def closed_port(monkeypatch: pytest.MonkeyPatch) -> int:
    """Return the port of NFS, at which nobody listens here."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    monkeypatch.setattr(nfs_options, "_PORT", port)
    return port


@pytest.mark.parametrize(
    ("entries", "port"),
    [
        ("", 2049),
        ("port=2050", 2050),
        ("port=0", 2049),
        ("proto=rdma,port=20049", 2049),
        ("port=20049,rdma", 2049),
        ("proto=udp,port=2050", 2049),
        ("port=2050,proto=tcp6", 2050),
    ],
)
def test_the_server_is_asked_at_its_port_for_tcp(entries: str, port: int) -> None:
    assert export(entries).port == port


@pytest.mark.parametrize("entries", ["proto=rdma,port=20049", "rdma", "udp"])
def test_a_server_that_need_not_listen_by_tcp_is_alive_if_it_refuses(
    closed_port: int, entries: str
) -> None:
    assert closed_port
    server.ping(export(entries, "3"))
    with pytest.raises(NfsError, match="NFS-REFUSED"):
        server.ping(export("", "3"))


def mounted(at: str, address: str) -> MountEntry:
    options = f"rw,addr={address},lookupcache=none"
    return MountEntry("0:50", "/", at, "nfs4", "nas:/x", options)


@pytest.mark.parametrize(
    ("answering", "has_moved"),
    [({"10.0.0.6"}, True), ({"10.0.0.5", "10.0.0.6"}, False), (set(), False)],
)
def test_a_server_has_moved_if_it_answers_elsewhere_only(
    monkeypatch: pytest.MonkeyPatch, answering: set[str], *, has_moved: bool
) -> None:
    monkeypatch.setattr(server, "mounted_at", lambda _: mounted("/m", "10.0.0.5"))
    monkeypatch.setattr(server, "ping", ping_of(answering))
    assert server.has_moved(export(""), Path("/m")) == has_moved


def ping_of(answering: set[str]) -> Callable[..., str]:
    """Return a ping that *answering* answer; the name stands for the last of them."""

    def ping(_: Export, *, address: str = "", **__: object) -> str:
        if not answering or (address and address not in answering):
            raise NfsError("UNREACHABLE", "no answer", "nas:/x")
        return address or max(answering)

    return ping


@pytest.mark.parametrize(
    ("answering", "behind"),
    [
        ({"10.0.0.6"}, ["/mnt/a"]),
        ({"10.0.0.5", "10.0.0.6"}, []),
        (set(), []),
    ],
)
def test_mounts_from_where_the_server_was_are_left_behind(
    monkeypatch: pytest.MonkeyPatch, answering: set[str], behind: list[str]
) -> None:
    """Of this server alone: another one that is down concerns nobody else."""
    table = [
        mounted("/mnt/a", "10.0.0.5"),
        mounted("/mnt/b", "10.0.0.6"),
        mounted("/mnt/c", "10.0.0.4")._replace(source="other:/x"),
    ]
    monkeypatch.setattr(server, "mount_table", lambda: table)
    monkeypatch.setattr(server, "ping", ping_of(answering))
    named = Export("nas", "/x", "4", "")
    assert [each.mount_point for each in server.left_behind(named)] == behind
    if behind:
        with pytest.raises(NfsError, match=r"NFS-MOVED: .* /mnt/a is mounted from"):
            mounting.mount(
                named, Path("/m"), subdir="", entries="", deadline=Deadline(1)
            )
