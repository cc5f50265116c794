"""
Asking a server whether it is there, and at which address.

Source: RFC 5531 (the NULL call); how dead servers behave was measured:
docs/adr/0008-nfs.md.
"""

from __future__ import annotations

import secrets
import socket
import struct
from collections.abc import Sequence
from concurrent.futures import wait
from functools import partial
from pathlib import Path
from typing import Any, Final

from backends.nfs.errors import NfsError
from backends.nfs.options import Export
from backends.system.aside import begun
from backends.system.clock import Deadline
from backends.system.mountinfo import MountEntry
from backends.system.mounts import mount_table, mounted_at

_PING_TIMEOUT_S: Final = 3.0
# A timeout of zero would mean something else to a socket.
_SHORTEST_S: Final = 0.001
_NFS_PROGRAM: Final = 100003


def ping(
    export: Export, *, address: str = "", timeout_s: float = _PING_TIMEOUT_S
) -> str:
    """
    Return the address at which the server answers an empty RPC call of its NFS version.

    It is asked by TCP, at *address* alone if that is given. Who refuses that, and is
    not to be reached by TCP, is alive.

    Raises:
        NfsError: DNS, REFUSED, UNREACHABLE or VERSION, within *timeout_s* or three
            seconds, name service included.

    """
    where = str(export)
    deadline = Deadline(min(timeout_s, _PING_TIMEOUT_S))
    call, host = _null_call(int(export.version[0])), address or export.server
    try:
        at, answer = _answer_to(call, export, host, deadline)
    except socket.gaierror as error:
        raise NfsError("DNS", f"'{export.server}': {error.strerror}", where) from error
    except UnicodeError as error:
        raise NfsError("DNS", f"'{export.server}': {error}", where) from error
    except ConnectionRefusedError as error:
        if not export.is_reached_by_tcp:
            return address
        raise NfsError("REFUSED", "nobody serves NFS there", where) from error
    except OSError as error:
        cause = "no answer" if isinstance(error, TimeoutError) else str(error)
        raise NfsError("UNREACHABLE", cause, where) from error
    _check_answer(answer, export)
    return at


def answers(export: Export, address: str = "") -> bool:
    """Return whether the server answers `ping`, be it that it lacks our version."""
    try:
        ping(export, address=address)
    except NfsError as error:
        return error.code == "NFS-VERSION"
    return True


def has_moved(export: Export, target: Path, at: str = "") -> bool:
    """
    Return whether the server answers, but not where *target* is mounted from.

    Its name may stand for another machine's address by now; the kernel goes on to wait
    for the old one. The caller may know *at* which address the server has answered.
    """
    entry = mounted_at(target)
    return entry is not None and bool(_behind(export, [entry], at))


def is_named(export: Export, address: str) -> bool:
    """Return whether the server's name stands for *address*, beside others perhaps."""
    try:
        found = _addresses(export, export.server, Deadline(_PING_TIMEOUT_S))
    except (NfsError, OSError, UnicodeError):
        return False
    # The kernel shows an interface by its number.
    return address.partition("%")[0] in {_shown(each[4]) for each in found}


def left_behind(export: Export) -> list[MountEntry]:
    """
    Return the mounts of this server from addresses at which it is no more.

    The kernel has one connection to a server, by whatever address it was first reached,
    as long as anything is mounted by it: a new mount would wait at the old address, and
    keep the connection for the next one.
    """
    of_it = [
        entry
        for entry in mount_table()
        if entry.filesystem.startswith("nfs")
        and entry.source.startswith(f"{export.host}:")
    ]
    return _behind(export, of_it) if of_it else []


def _behind(
    export: Export, entries: Sequence[MountEntry], at: str = ""
) -> list[MountEntry]:
    """Return those of *entries* at whose address nobody answers, if the server does."""
    try:
        at = at or ping(export)
    except NfsError:
        return []
    is_silent = {
        address: not answers(export, address)
        for address in {address_of(each) for each in entries}
        if at and address not in ("", at)
    }
    return [each for each in entries if is_silent.get(address_of(each))]


def address_of(entry: MountEntry) -> str:
    """Return the address of the server that *entry* is mounted from, as `ping` does."""
    options = dict(
        option.partition("=")[::2] for option in entry.super_options.split(",")
    )
    return options.get("addr", "")


def _answer_to(
    call: bytes, export: Export, host: str, deadline: Deadline
) -> tuple[str, bytes]:
    """
    Return the first address of *host* that can be reached, and what it answers.

    One that cannot leaves the others their part of the time. Who is reached gets all
    that is left: under load a live server is slow to answer.
    """
    failure: OSError = TimeoutError()
    addresses = _addresses(export, host, deadline)
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        part = Deadline(deadline.remaining_s() / (len(addresses) - number))
        with socket.socket(family, kind, protocol) as connection:
            try:
                connection.settimeout(max(part.remaining_s(), _SHORTEST_S))
                connection.connect(address)
            except OSError as error:
                failure = error
                continue
            connection.sendall(call)
            connection.settimeout(max(deadline.remaining_s(), _SHORTEST_S))
            return _shown(address), connection.recv(1024)
    raise failure


def _shown(address: Any) -> str:
    """Return a socket's *address* without its interface."""
    return str(address[0]).partition("%")[0]


def _addresses(export: Export, host: str, deadline: Deadline) -> list[Any]:
    """Return the addresses of *host*; without a name server that may take minutes."""
    port = export.port
    look = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = begun(look, name=f"dns:{host}")
    if not wait([found], deadline.remaining_s()).done:
        raise NfsError("DNS", f"'{host}': no name server answers", str(export))
    return found.result()


def _null_call(version: int) -> bytes:
    """Return an RPC call of procedure 0 with no credentials, as one TCP record."""
    transaction = secrets.randbits(32)
    body = struct.pack(">10I", transaction, 0, 2, _NFS_PROGRAM, version, 0, 0, 0, 0, 0)
    return struct.pack(">I", 0x8000_0000 | len(body)) + body


def _check_answer(answer: bytes, export: Export) -> None:
    """Raise VERSION if the server says that it does not have ours."""
    # record mark, transaction, REPLY, accepted, verifier (2), accept state, low, high
    if len(answer) < 28:
        raise NfsError("UNREACHABLE", "it closed the connection", str(export))
    state = struct.unpack_from(">I", answer, 24)[0]
    if state == 2 and len(answer) >= 36:
        low, high = struct.unpack_from(">2I", answer, 28)
        raise NfsError(
            "VERSION",
            f"the server has NFS {low} to {high}, not {export.version}",
            str(export),
        )
    if state == 1:
        raise NfsError("VERSION", "the server has no NFS", str(export))
