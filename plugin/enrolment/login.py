"""
Logging in to a new machine: which host key is accepted, and with which key we come.

A host key is accepted if it is in ~/.ssh/known_hosts, or has the fingerprint that the
administrator gave, or if he says yes to it when he sees it. Nothing else accepts one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import paramiko

from plugin.enrolment.remote import RemoteMachine
from plugin.errors import EnrolmentError

_STEP_TIMEOUT_S: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """
    Where to log in, and as which user.

    With *fingerprint* ("SHA256:...", as ssh-keygen -l prints it) that host key alone is
    accepted; without *identity* the agent's and the user's usual keys are tried.
    """

    host: str
    port: int = 22
    user: str = "root"
    identity: Path | None = None
    fingerprint: str = ""

    @property
    def name(self) -> str:
        """Return the machine as errors and questions name it."""
        return self.host if self.port == 22 else f"{self.host} port {self.port}"


class Questions(Protocol):
    """Asks a person what only a person can know."""

    def confirm_host_key(self, machine: str, kind: str, fingerprint: str) -> bool:
        """Return whether the machine's host key is the right one."""

    def secret(self, question: str) -> str:
        """Return the answer, which nobody sees; raise an error if nobody is there."""


def connect(login: Login, questions: Questions) -> RemoteMachine:
    """
    Return the machine, with us as root on it.

    Raises:
        EnrolmentError: it cannot be reached, is not the right one, or refuses us.

    """
    # paramiko would log what we raise as an error.
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
    client = paramiko.SSHClient()
    if not login.fingerprint:
        client.load_system_host_keys()
    client.set_missing_host_key_policy(_HostKeyPolicy(login, questions))
    try:
        try:
            _log_in(client, login, questions)
        except paramiko.AuthenticationException as error:
            raise EnrolmentError(
                f"{login.name} does not let {login.user} in: {error}",
                hint="--user and --identity name another user or key; sshd's "
                "PermitRootLogin decides whether root may use a password",
            ) from error
        machine = RemoteMachine(client, name=login.name)
        machine.become_root(questions.secret)
    except BaseException:
        client.close()
        raise
    return machine


class _HostKeyPolicy(paramiko.MissingHostKeyPolicy):
    """Decides about a host key that is not known; a yes holds for further attempts."""

    def __init__(self, login: Login, questions: Questions) -> None:
        self._login = login
        self._questions = questions
        self._accepted = login.fingerprint

    def missing_host_key(
        self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey
    ) -> None:
        """Return if *key* is the machine's, else raise an error."""
        del client, hostname
        shown = key.fingerprint
        if self._accepted == shown:
            return
        name, kind = self._login.name, key.get_name()
        if self._accepted:
            raise EnrolmentError(
                f"{name} has the {kind} key {shown}, not {self._accepted}",
                hint="there: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub",
            )
        if not self._questions.confirm_host_key(name, kind, shown):
            raise EnrolmentError(
                f"the host key of {name} ({kind} {shown}) was not confirmed",
                hint=f"if it is right: --host-key-fingerprint {shown}",
            )
        self._accepted = shown


def _log_in(client: paramiko.SSHClient, login: Login, questions: Questions) -> None:
    """Log in with keys, else with the password that is asked for."""
    if login.identity is not None:
        key = {"key_filename": str(login.identity), **_NO_OTHER_KEYS}
        try:
            _attempt(client, login, **key)
        except paramiko.PasswordRequiredException:
            passphrase = questions.secret(f"passphrase of {login.identity}")
            _attempt(client, login, **key, passphrase=passphrase)
        return
    try:
        _attempt(client, login, allow_agent=True, look_for_keys=True)
    except paramiko.BadAuthenticationType as error:
        if not {"password", "keyboard-interactive"} & set(error.allowed_types):
            raise
        _log_in_with_password(client, login, questions)
    except paramiko.AuthenticationException:
        _log_in_with_password(client, login, questions)


_NO_OTHER_KEYS: Final[Mapping[str, Any]] = {
    "allow_agent": False,
    "look_for_keys": False,
}


def _log_in_with_password(
    client: paramiko.SSHClient, login: Login, questions: Questions
) -> None:
    password = questions.secret(f"password of {login.user} on {login.name}")
    _attempt(client, login, password=password, **_NO_OTHER_KEYS)


def _attempt(client: paramiko.SSHClient, login: Login, **how: Any) -> None:
    """Connect and log in; any failure but a refused login is an `EnrolmentError`."""
    try:
        client.connect(
            login.host,
            login.port,
            login.user,
            timeout=_STEP_TIMEOUT_S,
            banner_timeout=_STEP_TIMEOUT_S,
            auth_timeout=_STEP_TIMEOUT_S,
            channel_timeout=_STEP_TIMEOUT_S,
            **how,
        )
    except paramiko.BadHostKeyException as error:
        raise EnrolmentError(
            f"{login.name} has the host key {error.key.fingerprint}, in known_hosts "
            f"it has {error.expected_key.fingerprint}: it may be another machine",
            hint="if it was installed anew: ssh-keygen -R removes the old key",
        ) from error
    except paramiko.AuthenticationException:
        raise
    except (paramiko.SSHException, OSError, EOFError) as error:
        if "No authentication methods available" in str(error):
            raise paramiko.AuthenticationException(str(error)) from error
        raise EnrolmentError(
            f"cannot log in to {login.name}: {_cause(error)}",
            hint="is sshd running there, and does nothing stand between? "
            f"ssh -p {login.port} {login.user}@{login.host} shows more",
        ) from error


def _cause(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
