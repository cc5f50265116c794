"""Sockets: bound once, never stolen, never left dead."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from plugin.daemon.sockets import bind_socket, inherited_socket, remove_socket
from plugin.errors import ConfigError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a short path: a socket's has at most 107 bytes."""
    found = tmp_path / "s" / "x.sock"
    if len(str(found)) > 107:
        pytest.skip("needs a shorter temporary directory")
    return found


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            return False
        return True


def test_a_socket_is_bound_for_its_owner_alone(path: Path) -> None:
    mask = os.umask(0)
    try:
        with bind_socket(path):
            assert path.stat().st_mode & 0o777 == 0o600
            assert connects(path)
            # What others of this process make is not made with our mask.
            assert os.umask(0) == 0
    finally:
        os.umask(mask)


def test_many_may_wait_before_anyone_accepts(path: Path) -> None:
    with bind_socket(path):
        clients = [socket.socket(socket.AF_UNIX) for _ in range(500)]
        for client in clients:
            client.setblocking(False)
            client.connect(str(path))
        for client in clients:
            client.close()


def test_a_dead_socket_is_replaced(path: Path) -> None:
    bind_socket(path).close()
    assert path.is_socket()
    assert not connects(path)
    with bind_socket(path):
        assert connects(path)


def test_a_live_socket_is_not_replaced(path: Path) -> None:
    with bind_socket(path):
        inode = path.stat().st_ino
        with pytest.raises(ConfigError, match="another process listens at"):
            bind_socket(path)
        assert path.stat().st_ino == inode
        assert connects(path)


@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "dangling link"])
def test_what_is_no_socket_is_not_replaced(path: Path, kind: str) -> None:
    path.parent.mkdir()
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(path.parent / "nothing")
    with pytest.raises(ConfigError, match="exists and is not a socket"):
        bind_socket(path)
    assert path.is_symlink() or path.exists()


def test_a_place_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot listen at .*/x\.sock: "):
        bind_socket(tmp_path / "file" / "x.sock")


def test_remove_socket_takes_what_is_gone(path: Path) -> None:
    bind_socket(path).close()
    remove_socket(path)
    assert not path.exists()
    remove_socket(path)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_FDS": "1", "LISTEN_PID": "1"},
        {"LISTEN_FDS": "1", "LISTEN_PID": ""},
        {"LISTEN_FDS": "0", "LISTEN_PID": str(os.getpid())},
        {"LISTEN_PID": str(os.getpid())},
    ],
)
def test_nothing_is_inherited_that_is_not_ours(environment: dict[str, str]) -> None:
    assert inherited_socket(environment) is None


@pytest.mark.parametrize("count", ["2", "-1", "x"])
def test_one_socket_is_handed_over_or_none(count: str) -> None:
    environment = {"LISTEN_FDS": count, "LISTEN_PID": str(os.getpid())}
    with pytest.raises(ConfigError, match=f"{count} sockets were handed over"):
        inherited_socket(environment)
