"""One OpenSSH server for a module, and somebody who answers what is asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.support.ssh_server import SshServer, ssh_server


@dataclass
class Answers:
    """Answers of an administrator; *asked* keeps what he was asked."""

    trust: bool = False
    secrets: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def confirm_host_key(self, machine: str, kind: str, fingerprint: str) -> bool:
        self.asked.append(f"{machine} {kind} {fingerprint}")
        return self.trust

    def secret(self, question: str) -> str:
        self.asked.append(question)
        return self.secrets.pop(0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    """Yield a server that runs for the module."""
    with ssh_server(tmp_path_factory.mktemp("ssh") / "server") as server:
        yield server


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    """Give each test a home without keys, known hosts and an agent."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ssh").mkdir(mode=0o700)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return home
