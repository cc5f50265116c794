"""
The node's two ed25519 keys: its sshd's, and the one for logging in to other nodes.

    <state_dir>/peer/host_key   by which other nodes know our sshd
    <state_dir>/peer/node_key   with which other nodes let us in

Both are made once. A public key is not kept beside its private one, but read out
of it: two files could disagree after a crash.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backends.errors import InvalidRequestError
from backends.system import files
from backends.system.run import run
from plugin.errors import StoreError
from plugin.peers.peer import plain_key

log = logging.getLogger(__name__)
_DEADLINE_S: Final = 30.0
# No comment: its default names the user and the machine.
_MAKE: Final = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "")
# With no passphrase, and without asking for one.
_SHOW: Final = ("ssh-keygen", "-y", "-P", "", "-f")
_TEMPORARY: Final = ".new-"


@dataclass(frozen=True, slots=True)
class NodeKeys:
    """Where the private keys are, and the public ones as text."""

    host_key: Path
    node_key: Path
    public_host_key: str
    public_node_key: str


def ensure_keys(directory: Path) -> NodeKeys:
    """
    Return the keys in *directory*, made if they are not there.

    Raises:
        StoreError: a key is there but cannot be read, or cannot be written.
        BackendError: ssh-keygen failed or is not installed.

    """
    try:
        files.keep_private(directory)
        for left in directory.glob(f"{_TEMPORARY}*"):
            left.unlink()  # a crash while a key was made
        host_key, node_key = directory / "host_key", directory / "node_key"
        public = [_ensure(path) for path in (host_key, node_key)]
    except OSError as error:
        raise StoreError(
            f"cannot keep keys in {directory}: {error.strerror}"
        ) from error
    return NodeKeys(host_key, node_key, *public)


def _ensure(path: Path) -> str:
    """Return the public key of *path*, which is made if it does not exist."""
    if not path.exists():
        temporary = path.with_name(f"{_TEMPORARY}{path.name}")
        run([*_MAKE, "-f", str(temporary)], deadline_s=_DEADLINE_S)
        files.write_durably(path, temporary.read_bytes())
        temporary.unlink()
        temporary.with_suffix(".pub").unlink()
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        path.chmod(0o600)  # ssh would not take it
        log.warning(
            "%s was open to others (mode %04o), and is shut: if somebody may have read "
            "it, remove it and restart, and the node has a new key",
            path,
            mode,
        )
    if fault := files.secret_fault(path):
        raise StoreError(fault)
    return _public_key(path)


def _public_key(path: Path) -> str:
    """Return the public half of the private key in *path*."""
    shown = run([*_SHOW, str(path)], deadline_s=_DEADLINE_S, allowed=range(256))
    try:
        return plain_key(shown.output.strip())
    except InvalidRequestError as error:
        said = (shown.errors.strip().splitlines() or [""])[-1]
        raise StoreError(
            f"{path} is no plain ed25519 key{said and f' ({said})'}",
            hint="restore it; or remove it and restart, and the node has a new key",
        ) from error
