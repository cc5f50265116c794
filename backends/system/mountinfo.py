"""
The kernel's tables of mounts, as text.

Apart from `mounts`, because the fencing guard and programs that start in a bare Python
read them too: this module loads in a few milliseconds (`dataclasses` would triple it).
Source: proc_pid_mountinfo(5).
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from typing import Final, NamedTuple

_OCTAL_ESCAPE: Final = re.compile(r"\\([0-7]{3})")
# Who may make namespaces decides how long a table is. Further copies count as users.
_SHOWN_MAX: Final = 1000
# /proc/PID/task has two, and one for each thread (fs/proc/base.c, proc_task_getattr).
_LINKS_OF_ONE_THREAD: Final = 3


class MountEntry(NamedTuple):
    """
    One line of mountinfo; ``root`` is the mounted path within its filesystem.

    Mounts of one ``peer_group`` show each other what is mounted below them; "" is none.
    ``parent`` is the ``number`` of the mount that it is mounted in; others of the same
    filesystem may not be ``read_only``.
    """

    device: str
    root: str
    mount_point: str
    filesystem: str
    source: str
    super_options: str
    peer_group: str = ""
    number: str = ""
    parent: str = ""
    read_only: bool = False

    def inside(self, path: object) -> str:
        """Return *path*, which lives on this mount, as it is within the filesystem."""
        return _moved(str(path), self.mount_point, self.root)


class Place(NamedTuple):
    """
    The directory ``path`` of ours: it is ``inside`` the filesystem of ``device``.

    It lives on the ``mount`` of that number. Where it stands for several, they and what
    leads to them from it are ``below``, as they are within the filesystem.
    """

    path: str
    device: str
    inside: str
    mount: str = ""
    below: frozenset[str] = frozenset()


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
            number=fields[0],
            parent=fields[1],
            read_only=fields[5].split(",", 1)[0] == "ro",
        )


def threads(pid: int) -> Iterator[str]:
    """
    Yield where /proc tells of process *pid*, then where of each of its other threads.

    Once the first thread has ended, the process's own place tells of no mounts, files
    or namespaces any more, while the other threads go on with them.
    """
    yield f"/proc/{pid}"
    directory = f"/proc/{pid}/task"
    with suppress(OSError):
        if os.stat(directory).st_nlink == _LINKS_OF_ONE_THREAD:  # noqa: PTH116 - quick
            return
        for name in os.listdir(directory):  # noqa: PTH208 - quick
            if name != str(pid):
                yield f"{directory}/{name}"


def sees_less(pid: int) -> bool:
    """Return whether process *pid* has a root of its own: its table ends there."""
    return next(filter(None, map(_root, threads(pid))), "/") != "/"


def thread_sees_less(thread: str) -> bool:
    """Return the same of one of its `threads`, which may have another one."""
    return _root(thread) not in ("", "/")


def _root(thread: str) -> str:
    """Return the root of *thread*, "" if it has ended."""
    try:
        return os.readlink(f"{thread}/root")  # noqa: PTH115 - quick
    except OSError:
        return ""


def places_of(paths: Collection[str], table: Iterable[bytes]) -> list[Place]:
    """Return where *paths* are by the lines of our own *table*, as far as it says."""
    found: dict[str, tuple[int, Place]] = {}
    for line in table:
        fields = line.decode(errors="surrogateescape").split(" ", 5)
        point = _unescape(fields[4]) if len(fields) > 5 else ""
        for path in paths:
            if point and _is_in(path, point):
                at, _ = found.get(path, (0, None))
                if len(point) >= at:
                    inside = _moved(path, point, _unescape(fields[3]))
                    found[path] = len(point), Place(path, fields[2], inside, fields[0])
    return [place for _, place in found.values()]


class OwnPaths:
    """
    Tells of the mounts in one table which are copies of ours, in *places*.

    What we mount comes into every namespace that the machine makes (services with
    private mounts, `docker run -v /:/host`). Its mount point is in a mount of the
    filesystem that has our directory, at its path in there: who has that is root on the
    machine. What a mount point is called says nothing, for containers choose it.
    """

    def __init__(self, places: Collection[Place]) -> None:
        self._places: dict[bytes, list[Place]] = {}
        for place in places:
            self._places.setdefault(place.device.encode(), []).append(place)
        # By the number of a mount: our directories in it, and where they are there.
        self._shown: dict[str, list[tuple[str, str]]] = {}

    def read(self, line: bytes) -> None:
        """Note the next *line* of the table; a mount comes after what it is in."""
        for device, places in self._places.items():
            if device not in line:
                continue  # most are of others, and to split them all takes its time
            fields = line.split(b" ", 5)
            if len(fields) > 5 and fields[2] == device:
                self._note(places, fields)

    def _note(self, places: Collection[Place], fields: list[bytes]) -> None:
        """Note which of *places* the mount shows whose line has *fields*."""
        root = _unescape(fields[3].decode(errors="surrogateescape"))
        point = _unescape(fields[4].decode(errors="surrogateescape"))
        for place in places:
            if _is_in(place.inside, root):
                path, at = place.path, _moved(place.inside, root, point)
            elif root in place.below:
                path, at = _moved(root, place.inside, place.path), point
            else:
                continue
            if len(self._shown) < _SHOWN_MAX:
                self._shown.setdefault(fields[0].decode(), []).append((path, at))

    def of(self, entry: MountEntry) -> set[str]:
        """Return at which paths of ours the mount *entry* is: a place may be in one."""
        shown = self._shown.get(entry.parent, ())
        over = [each for each in shown if _is_in(entry.mount_point, each[1])]
        if over:
            # Another one may be stacked on it.
            self._shown[entry.number] = over
        return {_moved(entry.mount_point, at, path) for path, at in over}


def _is_in(path: str, directory: str) -> bool:
    return f"{path}/".startswith(f"{directory.rstrip('/')}/")


def _moved(path: str, old: str, new: str) -> str:
    """Return *path*, which is in *old*, as it is in *new*."""
    return new.rstrip("/") + path[len(old.rstrip("/")) :]


def _unescape(field: str) -> str:
    if "\\" not in field:
        return field  # nearly all; looking for escapes took half of the time
    return _OCTAL_ESCAPE.sub(lambda match: chr(int(match[1], 8)), field)
