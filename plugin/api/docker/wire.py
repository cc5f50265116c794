"""
Docker's volume protocol as bytes: requests to values, values to answers. No I/O.

The engine sends one JSON object without a Content-Type and ignores the answer's. It
takes any status but 200 for a failure and adds words to its text, so our errors are
answered as 200 with ``Err``. Source: moby pkg/plugins/client.go, measured.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from backends.errors import InvalidRequestError, RemoraError
from backends.system.decoding import from_json
from plugin.limits import REQUEST_SIZE_MAX

CONTENT_TYPE: Final = "application/vnd.docker.plugins.v1.2+json"


class EmptyBodyError(InvalidRequestError):
    """
    The request had no body.

    After a broken connection the engine repeats a call without its body. Nobody knows
    what it wanted, so nothing may be done.
    """


class CreateCall(msgspec.Struct, frozen=True):
    """`/VolumeDriver.Create`."""

    name: str = msgspec.field(name="Name")
    options: dict[str, str] | None = msgspec.field(name="Opts", default=None)


class MountCall(msgspec.Struct, frozen=True):
    """`/VolumeDriver.Mount` and `/VolumeDriver.Unmount`; old engines send no id."""

    name: str = msgspec.field(name="Name")
    mount_id: str = msgspec.field(name="ID", default="")


class NameCall(msgspec.Struct, frozen=True):
    """`/VolumeDriver.Get`, `.Path` and `.Remove`."""

    name: str = msgspec.field(name="Name")


class _VolumeAnswer(msgspec.Struct, frozen=True, omit_defaults=True, rename="pascal"):
    name: str
    mountpoint: str = ""
    # RFC 3339 or absent: with an empty one the engine's whole List fails.
    created_at: str | msgspec.UnsetType = msgspec.UNSET
    status: dict[str, object] | msgspec.UnsetType = msgspec.UNSET


Call = TypeVar("Call", CreateCall, MountCall, NameCall)


def parse(kind: type[Call], body: bytes) -> Call:
    """Return the call of that *kind* in *body*, or raise InvalidRequestError."""
    if not body.strip():
        raise EmptyBodyError(
            "the request had no body, as after a broken connection; nothing was done",
            hint="repeat the command",
        )
    if len(body) > REQUEST_SIZE_MAX:
        raise InvalidRequestError(
            f"the request has {len(body)} bytes; at most {REQUEST_SIZE_MAX} are read"
        )
    try:
        return from_json(body, kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(f"the request cannot be read: {error}") from None


def render_empty() -> bytes:
    """Return the answer of a call that has no result."""
    return b"{}"


def render_activation() -> bytes:
    """Return what this plugin implements."""
    return b'{"Implements":["VolumeDriver"]}'


def render_capabilities(scope: str) -> bytes:
    """Return the plugin's scope, "local" or "global"."""
    return msgspec.json.encode({"Capabilities": {"Scope": scope}})


def render_mountpoint(mountpoint: str) -> bytes:
    """Return the answer of Mount and Path."""
    return msgspec.json.encode({"Mountpoint": mountpoint})


def render_volume(
    name: str, mountpoint: str, created_at: str, status: dict[str, object]
) -> bytes:
    """Return the answer of Get."""
    answer = _VolumeAnswer(
        name, mountpoint, created_at or msgspec.UNSET, status or msgspec.UNSET
    )
    return msgspec.json.encode({"Volume": answer})


def render_list(volumes: list[tuple[str, str, str]]) -> bytes:
    """Return the answer of List: (name, mount point, created at) of each volume."""
    answers = [
        _VolumeAnswer(name, mountpoint, created_at or msgspec.UNSET)
        for name, mountpoint, created_at in volumes
    ]
    return msgspec.json.encode({"Volumes": answers})


def render_error(error: RemoraError) -> bytes:
    """Return *error* as the engine shows it: one line."""
    return msgspec.json.encode({"Err": str(error)})
