"""What is in requests: checked before anything is asked of the daemon."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from plugin.api.csi.errors import invalid

# Source: the specification's section on size limits.
_TEXT_SIZE_MAX: Final = 128
_MAP_SIZE_MAX: Final = 4096
# What schedulers add to what people have written.
_SCHEDULERS: Final = ("csi.storage.k8s.io/", "storage.kubernetes.io/")
_MODES: Final = frozenset(range(1, 8))
_READING: Final = frozenset({2, 3})


@dataclass(frozen=True, slots=True)
class Access:
    """How a volume is to be used."""

    mode: int
    read_only: bool


def required(request: Any, *names: str) -> None:
    """
    Raise unless the fields *names* are there, and names no longer than they may be.

    Nothing has an id that is too long; so it is not found, or is gone already.
    """
    for name in names:
        value = getattr(request, name)
        if not value or (hasattr(value, "ByteSize") and not request.HasField(name)):
            raise invalid(f"{name} is missing")
        if name == "name":
            limited(name, value)


def limited(name: str, text: str) -> str:
    """Return *text*, the field *name*; raise if it is too long."""
    if len(text.encode()) > _TEXT_SIZE_MAX:
        raise invalid(f"{name} has more than {_TEXT_SIZE_MAX} bytes")
    return text


def access(capability: Any) -> Access:
    """Return what *capability* asks for; raise if that cannot be had of any volume."""
    if capability.HasField("block"):
        raise invalid("volumes are directories: there are no block volumes")
    if not capability.HasField("mount"):
        raise invalid("volume_capability has no access type: mount is missing")
    mode = capability.access_mode.mode
    if mode not in _MODES:
        raise invalid("volume_capability has no access mode")
    flags = [each for each in capability.mount.mount_flags if each not in ("rw", "ro")]
    if flags:
        raise invalid(
            f"mount option '{flags[0][:64]}' means nothing for a directory",
            hint="a share's mount options are the parameter 'o' of its class",
        )
    read_only = mode in _READING or "ro" in capability.mount.mount_flags
    return Access(mode, read_only)


def own(values: Mapping[str, str]) -> dict[str, str]:
    """Return *values* without what schedulers have added."""
    size = sum(len(key.encode()) + len(each.encode()) for key, each in values.items())
    if size > _MAP_SIZE_MAX:
        raise invalid(f"parameters of more than {_MAP_SIZE_MAX} bytes")
    return {k: v for k, v in values.items() if not k.startswith(_SCHEDULERS)}
