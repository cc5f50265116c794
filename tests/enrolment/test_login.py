"""Logging in: which host keys are accepted, and how we show who we are."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from plugin.enrolment.login import Login, connect
from plugin.enrolment.remote import RemoteMachine
from plugin.errors import EnrolmentError
from tests.enrolment.conftest import Answers
from tests.support.etcd import new_address
from tests.support.host import wait_until
from tests.support.ssh_server import SshServer, make_key


def login(server: SshServer, **changed: object) -> Login:
    values = {"host": server.address, "port": server.port, "identity": server.identity}
    return Login(**{**values, **changed})


def logged_in(server: SshServer, answers: Answers, **changed: object) -> str:
    machine = connect(login(server, **changed), answers)
    try:
        return machine.run("id -un", what="id").output.strip()
    finally:
        machine.close()


def know(home: Path, server: SshServer, key: str) -> None:
    (home / ".ssh/known_hosts").write_text(f"{server.known_as()} {key}\n")


def public_key(path: Path) -> str:
    return path.with_suffix(".pub").read_text()


def admitted(server: SshServer) -> int:
    """Return how often anybody was let in."""
    return server.log.count("Accepted publickey")


# The host key


def test_an_unknown_host_key_is_shown_and_confirmed(server: SshServer) -> None:
    answers = Answers(trust=True)
    assert logged_in(server, answers) == "root"
    [asked] = answers.asked
    assert server.fingerprint() in asked
    assert "ssh-ed25519" in asked
    assert server.address in asked


def test_without_a_yes_nobody_logs_in(server: SshServer) -> None:
    before = admitted(server)
    with pytest.raises(EnrolmentError, match="was not confirmed") as told:
        connect(login(server), Answers(trust=False))
    assert f"--host-key-fingerprint {server.fingerprint()}" in str(told.value)
    assert admitted(server) == before


def test_a_given_fingerprint_is_not_asked_about(server: SshServer) -> None:
    answers = Answers()
    assert logged_in(server, answers, fingerprint=server.fingerprint()) == "root"
    assert answers.asked == []


def test_a_given_fingerprint_counts_alone(home: Path, server: SshServer) -> None:
    """Not even what known_hosts says helps, and nobody is asked instead."""
    know(home, server, server.host_key())
    before = admitted(server)
    answers = Answers(trust=True)
    with pytest.raises(EnrolmentError, match="not SHA256:") as told:
        connect(login(server, fingerprint="SHA256:" + "A" * 43), answers)
    assert server.fingerprint() in str(told.value)
    assert answers.asked == []
    assert admitted(server) == before


def test_a_known_host_key_is_not_asked_about(home: Path, server: SshServer) -> None:
    know(home, server, server.host_key())
    answers = Answers()
    assert logged_in(server, answers) == "root"
    assert answers.asked == []


def test_a_changed_host_key_is_refused(
    home: Path, server: SshServer, tmp_path: Path
) -> None:
    make_key(tmp_path / "other")
    know(home, server, public_key(tmp_path / "other"))
    before = admitted(server)
    answers = Answers(trust=True)
    with pytest.raises(EnrolmentError, match="it may be another machine"):
        connect(login(server), answers)
    assert answers.asked == []
    assert admitted(server) == before


# The administrator


def test_the_usual_keys_are_tried(home: Path, server: SshServer) -> None:
    shutil.copy(server.identity, home / ".ssh/id_ed25519")
    assert logged_in(server, Answers(trust=True), identity=None) == "root"


def test_the_agents_keys_are_tried(
    server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"/tmp/remora-agent-{new_address()}"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", address], stdout=-3)
    try:
        monkeypatch.setenv("SSH_AUTH_SOCK", address)
        added = ["ssh-add", "-q", str(server.identity)]
        wait_until(
            lambda: subprocess.run(added, check=False, timeout=30).returncode == 0,
            timeout_s=30,
            what="the agent has the key",
        )
        assert logged_in(server, Answers(trust=True), identity=None) == "root"
    finally:
        agent.terminate()
        agent.wait(timeout=30)
        Path(address).unlink(missing_ok=True)


def test_an_encrypted_key_needs_its_passphrase(
    server: SshServer, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    make_key(key, passphrase="open sesame")
    with (server.directory / "authorized_keys").open("a") as authorized:
        authorized.write(public_key(key))
    answers = Answers(trust=True, secrets=["open sesame"])
    assert logged_in(server, answers, identity=key) == "root"
    assert answers.asked[1:] == [f"passphrase of {key}"]
    with pytest.raises(EnrolmentError):
        connect(login(server, identity=key), Answers(trust=True, secrets=["wrong"]))


def test_a_strange_key_is_refused_in_one_line(
    server: SshServer, tmp_path: Path
) -> None:
    make_key(tmp_path / "key")
    with pytest.raises(EnrolmentError, match="does not let root in") as told:
        connect(login(server, identity=tmp_path / "key"), Answers(trust=True))
    assert "\n" not in str(told.value)
    assert "--identity" in str(told.value)


def test_a_password_that_is_not_taken_says_what_is(server: SshServer) -> None:
    answers = Answers(trust=True, secrets=["secret"])
    with pytest.raises(EnrolmentError, match="does not let root in") as told:
        connect(login(server, identity=None), answers)
    assert answers.asked[1:] == [f"password of root on {login(server).name}"]
    assert "publickey" in str(told.value)
    assert "secret" not in str(told.value)


def test_nobody_there_is_said_in_one_line() -> None:
    nobody = Login(host=new_address(), port=9)
    with pytest.raises(EnrolmentError, match="cannot log in to") as told:
        connect(nobody, Answers())
    assert "port 9" in str(told.value)
    unknown = Login(host="no-such-host.invalid")
    with pytest.raises(EnrolmentError, match="cannot log in to no-such-host"):
        connect(unknown, Answers())


def test_a_closed_connection_is_one_line(server: SshServer) -> None:
    machine: RemoteMachine = connect(login(server), Answers(trust=True))
    machine.close()
    with pytest.raises(EnrolmentError, match=r"the connection to .* broke"):
        machine.run(":", what="nothing")
