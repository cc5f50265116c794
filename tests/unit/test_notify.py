"""Words to systemd, on a real datagram socket; sd_notify(3)."""

from __future__ import annotations

import logging
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from plugin.daemon.notify import notify


@contextmanager
def listener(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
        found.bind(address)
        found.settimeout(5)
        yield found


def test_the_state_is_sent_whole(tmp_path: Path) -> None:
    address = str(tmp_path / "n")
    with listener(address) as systemd:
        notify("READY=1\nSTATUS=serving", {"NOTIFY_SOCKET": address})
        assert systemd.recv(4096) == b"READY=1\nSTATUS=serving"


def test_an_at_sign_means_the_abstract_namespace() -> None:
    name = f"remora-test-{secrets.token_hex(8)}"
    with listener(f"\0{name}") as systemd:
        notify("STOPPING=1", {"NOTIFY_SOCKET": f"@{name}"})
        assert systemd.recv(4096) == b"STOPPING=1"


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}])
def test_without_systemd_nothing_is_said(
    environment: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    notify("READY=1", environment)
    assert caplog.records == []


def test_a_socket_that_does_not_listen_is_told_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        notify("READY=1\nSTATUS=x", {"NOTIFY_SOCKET": str(tmp_path / "none")})
    [record] = caplog.records
    assert "systemd was not told 'READY=1" in record.getMessage()
    assert record.getMessage().isprintable()
