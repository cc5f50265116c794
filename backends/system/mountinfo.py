"""
The kernel's tables of mounts, as text.

Apart from `mounts`, because the fencing guard and programs that start in a bare Python
read them too: this module loads in a few milliseconds (`dataclasses` would triple it).
Source: proc_pid_mountinfo(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

_OCTAL_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


class MountEntry(NamedTuple):
    """
    One line of mountinfo; ``root`` is the mounted path within its filesystem.

    Mounts of one ``peer_group`` show each other what is mounted below them; "" is none.
    """

    device: str
    root: str
    mount_point: str
    filesystem: str
    source: str
    super_options: str
    peer_group: str = ""


def parse_mountinfo(text: str) -> Iterator[MountEntry]:
    """Yield the entries of a mountinfo file, in its order (later ones hide earlier)."""
    # Not splitlines(): the kernel escapes the line feed alone of what that splits at.
    for line in text.split("\n"):
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        tail = after.split(" ")
        if not separator or len(fields) < 6 or len(tail) < 3:
            continue  # the kernel writes no such line; a truncated read might
        groups = (field for field in fields[6:] if field.startswith("shared:"))
        yield MountEntry(
            device=fields[2],
            root=_unescape(fields[3]),
            mount_point=_unescape(fields[4]),
            filesystem=tail[0],
            source=_unescape(tail[1]),
            super_options=tail[2],
            peer_group=next(groups, ""),
        )


def _unescape(field: str) -> str:
    if "\\" not in field:
        return field  # nearly all; looking for escapes took half of the time
    return _OCTAL_ESCAPE.sub(lambda match: chr(int(match[1], 8)), field)
