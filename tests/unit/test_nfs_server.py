"""Whether an NFS server is there, and where: what is asked, and what that means."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from backends.nfs import mounting, server
from backends.nfs import options as nfs_options
from backends.nfs.errors import NfsError
from backends.nfs.options import Export
from backends.system.aside import begun
from backends.system.clock import Deadline, pause
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


def test_a_server_that_lacks_our_version_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Others have it mounted by another version: nothing of theirs is left behind."""

    def ping(_: Export, *, address: str = "", **__: object) -> str:
        if address:
            raise NfsError("VERSION", "the server has NFS 3 to 3, not 4", "nas:/x")
        return "10.0.0.6"

    monkeypatch.setattr(server, "ping", ping)
    monkeypatch.setattr(server, "mount_table", lambda: [mounted("/mnt/a", "10.0.0.5")])
    assert server.left_behind(Export("nas", "/x", "4", "")) == []


@pytest.mark.parametrize("is_named", [True, False])
def test_nothing_of_others_is_forced_where_the_server_may_come_back(
    monkeypatch: pytest.MonkeyPatch, *, is_named: bool
) -> None:
    """A server of two addresses, one of which is silent for a while."""
    entry = mounted("/m", "10.0.0.5")
    two = [entry, entry._replace(mount_point="/of-another-volume")]
    names = ["10.0.0.6"] + ["10.0.0.5"] * is_named
    monkeypatch.setattr(server, "mounted_at", lambda _: entry)
    monkeypatch.setattr(server, "ping", ping_of({"10.0.0.6"}))
    monkeypatch.setattr(mounting, "mount_table", lambda: two)
    monkeypatch.setattr(
        server, "_addresses", lambda *_: [(0, 0, 0, "", (each, 2049)) for each in names]
    )
    steps = [how for _, how in mounting._ladder(entry, Export("nas", "/x", "4", ""))]
    assert ("by force" in steps) == (not is_named)


def test_an_address_that_cannot_be_reached_leaves_time_for_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ExitStack() as opened:
        silent = opened.enter_context(socket.create_server(("127.0.0.2", 0), backlog=0))
        live = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        for _ in range(3):  # now nobody else gets in
            caller = opened.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(silent.getsockname())
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 0, "", each.getsockname())
            for each in (silent, live)
        ]
        monkeypatch.setattr(server, "_addresses", lambda *_: found)
        accepted = begun(lambda: answered(live), name="server")
        assert server.ping(Export("nas", "/x", "3", ""), timeout_s=1) == "127.0.0.1"
        accepted.result()


def answered(listener: socket.socket) -> None:
    """Answer one empty call as a server does."""
    caller, _ = listener.accept()
    with caller:
        call = caller.recv(1024)
        pause(0.05)  # as long as no caller in a hurry would wait
        caller.sendall(b"\x80\0\0\x18" + call[4:8] + b"\0\0\0\x01" + bytes(16))


def test_an_address_is_named_whatever_its_interface_is_called() -> None:
    named = Export("fe80::1%lo", "/x", "4", "")
    assert server.is_named(named, "fe80::1%1")
    assert not server.is_named(named, "fe80::2%1")
