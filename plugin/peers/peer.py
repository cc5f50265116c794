"""
Another node: its addresses, and the keys by which this node knows it.

The fields come out of the store, where another node has written them, and go into files
that sshd and ssh read line by line: what does not have its exact form is refused here.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import struct
import uuid
from dataclasses import dataclass
from typing import Final

from backends.errors import InvalidRequestError

KEY_TYPE: Final = "ssh-ed25519"
KEY_LENGTH: Final = 32
_KEY_TEXT_LENGTH_MAX: Final = 256
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_ADDRESSES_MAX: Final = 16
_PORT_MAX: Final = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """
    One node: *host_key* is its sshd's, *public_key* the one it logs in to us with.

    Raises:
        InvalidRequestError: a field does not have its form.

    """

    id: str
    name: str
    addresses: tuple[str, ...]
    port: int
    host_key: str
    public_key: str

    def __post_init__(self) -> None:
        if not _is_uuid(self.id):
            raise InvalidRequestError(f"node id {self.id!r} is no uuid")
        if not 1 <= len(self.addresses) <= _ADDRESSES_MAX:
            raise InvalidRequestError(
                f"node {self.id} has {len(self.addresses)} addresses, "
                f"not 1 to {_ADDRESSES_MAX}"
            )
        for address in self.addresses:
            if not _is_address(address):
                raise InvalidRequestError(
                    f"node {self.id}: {address!r} is neither an address nor a name"
                )
        if not 1 <= self.port <= _PORT_MAX:
            raise InvalidRequestError(f"node {self.id}: {self.port} is no port")
        # Even a frozen object is changed here: a key's comment must not get into files.
        object.__setattr__(self, "host_key", plain_key(self.host_key))
        object.__setattr__(self, "public_key", plain_key(self.public_key))

    @property
    def alias(self) -> str:
        """Return the name that ssh knows the node's host key by."""
        return f"remora-{self.id}"


def plain_key(text: str) -> str:
    """
    Return the ed25519 public key of *text* as "ssh-ed25519 AAAA…", without a comment.

    Raises:
        InvalidRequestError: it is anything else.

    """
    words = text.split(" ", 2)
    if len(text) <= _KEY_TEXT_LENGTH_MAX and len(words) >= 2 and words[0] == KEY_TYPE:
        try:
            blob = base64.b64decode(words[1], validate=True)
        except (binascii.Error, ValueError):
            blob = b""
        if len(blob) > KEY_LENGTH and blob == key_blob(blob[-KEY_LENGTH:]):
            return f"{KEY_TYPE} {base64.b64encode(blob).decode()}"
    raise InvalidRequestError(f"{text[:80]!r} is no ed25519 public key")


def key_blob(key: bytes) -> bytes:
    """Return the 32 bytes of *key* as SSH sends them. Source: RFC 8709, 4."""
    name = KEY_TYPE.encode()
    return struct.pack(f">I{len(name)}sI", len(name), name, len(key)) + key


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def _is_address(text: str) -> bool:
    try:
        # No scope is allowed ("fe80::1%eth0"): after % there may be any text.
        return "%" not in text and bool(ipaddress.ip_address(text))
    except ValueError:
        return _HOST_NAME.fullmatch(text) is not None
