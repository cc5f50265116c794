"""
Mounts: the kernel's table of them, bind mounts, and who else has one.

Bind mounts go through mount(2) itself: exact errors, and no helper program to find.
Source: mount(2), umount2(2), proc_pid_mountinfo(5).
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final, TypeVar

from backends.errors import BackendError, VolumeBusyError
from backends.system import jail, libc
from backends.system.mountinfo import (
    MountEntry,
    OwnPaths,
    parse_mountinfo,
    places_of,
    thread_sees_less,
    threads,
)

# A crashed daemon could have stacked a second bind on the first; not many more.
_STACKED_MAX: Final = 8
# What the kernel does not list as it is.
_ESCAPED: Final = re.compile(rb"[ \t\n\\]")
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class VolumeUser:
    """One process outside the daemon that has a volume's bytes mounted."""

    pid: int
    command: str
    mount_point: str

    def __str__(self) -> str:
        return f"{self.command} (pid {self.pid}) at {self.mount_point}"


class MountTable:
    """
    The mounts of the daemon's own namespace, at the moment of its making.

    Lines are parsed when they are asked for: most questions are of one path.
    """

    def __init__(self) -> None:
        self._lines = _read("/proc/self/mountinfo").split(b"\n")

    def all(self) -> list[MountEntry]:
        """Return all entries; later ones hide earlier ones."""
        return _entries(self._lines)

    def at(self, target: Path) -> MountEntry | None:
        """Return the topmost mount on *target*, None if it is no mount point."""
        wanted = _as_listed(target)
        found = _entries(line for line in self._lines if _point_of(line) == wanted)
        return found[-1] if found else None

    def below(self, directory: Path) -> list[MountEntry]:
        """Return the mounts below *directory*, at any depth."""
        inside = _as_listed(directory).rstrip(b"/") + b"/"
        points = ((_point_of(line), line) for line in self._lines)
        return _entries(
            line
            for point, line in points
            if point.startswith(inside) and point != inside
        )

    def covering(self, path: Path) -> MountEntry:
        """
        Return the mount that *path* lives on.

        Raises:
            BackendError: there is none (a chroot whose root is no mount).

        """
        wanted = _as_listed(path).rstrip(b"/") + b"/"
        points = ((_point_of(line).rstrip(b"/") + b"/", line) for line in self._lines)
        over = [(point, line) for point, line in points if wanted.startswith(point)]
        longest = max((len(point) for point, _ in over), default=0)
        found = _entries(line for point, line in over if len(point) == longest)
        if not found:
            raise BackendError(f"the kernel lists no mount that holds {path}")
        return found[-1]


def _point_of(line: bytes) -> bytes:
    """Return the mount point in *line* as it is listed; b"" in what is no line."""
    fields = line.split(b" ", 5)
    return fields[4] if len(fields) > 5 else b""


def _as_listed(path: Path) -> bytes:
    """Return *path* as the kernel lists it. Source: fs/proc_namespace.c, mangle."""
    return _ESCAPED.sub(lambda found: b"\\%03o" % found[0][0], os.fsencode(path))


def _entries(lines: Iterable[bytes]) -> list[MountEntry]:
    return [
        entry
        for line in lines
        for entry in parse_mountinfo(line.decode(errors="surrogateescape"))
    ]


def mount_table() -> list[MountEntry]:
    """Return the mounts of the daemon's own namespace."""
    return MountTable().all()


def mounted() -> dict[str, MountEntry]:
    """Return the topmost mount on each mount point; for those who ask for many."""
    return {entry.mount_point: entry for entry in mount_table()}


def mounted_at(target: Path) -> MountEntry | None:
    """Return the topmost mount on *target*, None if *target* is no mount point."""
    return MountTable().at(target)


def mount_points_below(directory: Path) -> list[Path]:
    """Return the mount points below *directory*, at any depth."""
    return [Path(entry.mount_point) for entry in MountTable().below(directory)]


def inner_mounts(directory: Path) -> list[Path]:
    """Return the mount points in *directory* that nothing mounted over them hides."""
    table = MountTable()
    number = table.covering(directory).number
    found = (each for each in table.below(directory) if each.parent == number)
    return [Path(each.mount_point) for each in found]


def entry_covering(path: Path) -> MountEntry:
    """Return the mount that *path* lives on; see `MountTable.covering`."""
    return MountTable().covering(path)


def bind(source: Path, target: Path, *, suid: bool, read_only: bool = False) -> None:
    """
    Make directory *source* appear at the existing directory *target*.

    Devices in it cannot be opened, set-id bits count only with *suid*, and nothing can
    be changed through a *read_only* one.

    Raises:
        BackendError: the kernel refused.

    """
    attributes = libc.MOUNT_NODEV | (0 if suid else libc.MOUNT_NOSUID)
    attributes |= libc.MOUNT_READ_ONLY if read_only else 0
    try:
        libc.bind(os.fsencode(source), os.fsencode(target), attributes)
    except OSError as error:
        hint = "the daemon needs CAP_SYS_ADMIN" if error.errno == errno.EPERM else ""
        raise BackendError(
            f"cannot bind {source} to {target}: {error.strerror}", hint=hint
        ) from error


def unmount(target: Path, *, by: str = "") -> None:
    """
    Remove every mount on *target*; none there is success.

    *by* is another name of it, through a directory that is open.

    Raises:
        VolumeBusyError: a process of this namespace works below it.
        BackendError: the kernel refused for another reason.

    """
    for _ in range(_STACKED_MAX):
        try:
            libc.umount(os.fsencode(by or target), libc.UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return
            if error.errno == errno.EBUSY:
                raise VolumeBusyError(
                    f"{target} is in use by a process of this machine",
                    hint=f"fuser -vm {target} names it",
                ) from None
            raise BackendError(f"cannot unmount {target}: {error.strerror}") from error
    if mounted_at(target) is not None:
        raise BackendError(
            f"{target} has more than {_STACKED_MAX} mounts stacked on it",
            hint="so many were not made here: see findmnt",
        )


def shown_elsewhere(target: Path) -> bool:
    """
    Return whether another mount namespace has the mount on *target* as a peer.

    Slaves, such as containers and the daemon's own helpers have, do not count.
    Source: mount_namespaces(7), shared subtrees.
    """
    entry = mounted_at(target)
    if entry is None or not entry.peer_group:
        return False
    own = _mount_namespace("/proc/self")
    clue = f" {entry.peer_group} ".encode()
    return any(
        is_shown and namespace != own
        for _, namespace, is_shown in _mount_namespaces(
            lambda table: any(clue in line for line in table)
        )
    )


def users_of(directory: Path) -> list[VolumeUser]:
    """
    Return one process for each mount namespace that has *directory* mounted elsewhere.

    A disk that is mounted at *directory* itself is not used by that.
    """
    covering = entry_covering(directory)
    own = {directory} & {Path(covering.mount_point)}
    root = covering.inside(directory)
    return users_of_root(root, device=covering.device, own=own)


def users_of_root(
    root: str, *, device: str = "", source: str = "", own: Collection[Path]
) -> list[VolumeUser]:
    """
    Return one process for each mount namespace that shows *root* of *device*.

    A container's view of a volume is such a mount: the same device and the same path
    within the filesystem, or one below it. On NFS, where one device has many volumes,
    *source* stands in for the device.

    The daemon's own mounts, which are at or below the paths *own*, do not count, nor do
    their copies in other namespaces.

    Raises:
        BackendError: a namespace could not be read, so that nothing is proven.

    """

    def shows(entry: MountEntry) -> bool:
        same = entry.source == source if source else entry.device == device
        return same and f"{entry.root}/".startswith(f"{root.rstrip('/')}/")

    # Up to the first character that the kernel escapes: most tables have no trace of
    # the volume, and to parse them all took three quarters of a removal.
    plain = os.fsencode(re.split(r"[ \t\n\\]", source or root)[0])
    named = jail.ROOT_SOURCE.encode()
    with Path("/proc/self/mountinfo").open("rb") as own_table:
        places = places_of({str(path.parent) for path in own}, own_table)

    def is_own(paths: Collection[str]) -> bool:
        return any(Path(path).is_relative_to(each) for path in paths for each in own)

    def look(table: Iterator[bytes]) -> tuple[bool, str]:
        """Return whether a jail has the namespace, and where it shows the volume."""
        is_jail, point, own_paths = False, "", OwnPaths(places)
        for line in table:
            own_paths.read(line)
            if plain not in line and named not in line:
                continue
            for entry in parse_mountinfo(line.decode(errors="surrogateescape")):
                is_jail = is_jail or _is_jail(entry)
                if not point and shows(entry) and not is_own(own_paths.of(entry)):
                    point = entry.mount_point
        return is_jail, point

    return [
        VolumeUser(pid, _command(pid), point)
        for pid, _, (is_jail, point) in _mount_namespaces(look)
        if point and not (is_jail and _is_ours(pid))
    ]


def _is_jail(entry: MountEntry) -> bool:
    """Return whether *entry* is the root of a jail, whose program uses no volume."""
    at = entry.mount_point in ("/", jail.MOUNT_POINT)
    return at and (entry.filesystem, entry.source) == ("tmpfs", jail.ROOT_SOURCE)


def _is_ours(pid: int) -> bool:
    """Return whether we started a process: whoever may mount can name a root so."""
    with suppress(OSError):
        while pid > 1 and pid != os.getpid():
            # After the name, which may hold anything: the state, then the parent.
            pid = int(_read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[1])
        return pid == os.getpid()
    return False


def _mount_namespaces(
    look: Callable[[Iterator[bytes]], Found],
) -> Iterator[tuple[int, str, Found]]:
    """
    Yield a process of each mount namespace, that, and what *look* finds in its table.

    Whoever may make namespaces decides how long a table is: *look* gets its lines.
    """
    seen: set[str] = set()
    # One of a program's may be in a namespace of its own, as dockerd's for a copy, and
    # see less of it than another program there. To ask each of them for its root took
    # most of a removal: who is in a namespace that was read is not asked.
    seeing_less = []
    for pid in _process_ids():
        for thread in threads(pid):
            namespace = _mount_namespace(thread)
            if namespace in seen:
                continue
            if thread_sees_less(thread):
                seeing_less.append((pid, thread, namespace))
            else:
                yield from _read_table(pid, thread, namespace, seen, look)
    for pid, thread, namespace in seeing_less:
        if namespace not in seen:
            yield from _read_table(pid, thread, namespace, seen, look)


def _mount_namespace(thread: str) -> str:
    """Return what it is called; "" if *thread* has ended, or the kernel is silent."""
    try:
        return os.readlink(f"{thread}/ns/mnt")  # noqa: PTH115 - quick
    except OSError:
        return ""


def _read_table(
    pid: int,
    thread: str,
    namespace: str,
    seen: set[str],
    look: Callable[[Iterator[bytes]], Found],
) -> list[tuple[int, str, Found]]:
    """Return what `_mount_namespaces` yields for *thread*, nothing if it has ended."""
    # It may end between any two lines; a namespace that nobody lives in uses nothing,
    # but one may be seen again through another process.
    try:
        with Path(f"{thread}/mountinfo").open("rb") as table:
            first = table.readline()
            if not first:
                return []
            found = look(chain((first,), table))
    except (FileNotFoundError, ProcessLookupError):
        return []
    except OSError as error:
        if error.errno == errno.EINVAL:  # the kernel's answer for who has ended
            return []
        raise BackendError(
            f"cannot see the mounts of process {pid}: {error.strerror}",
            hint="the daemon must run as root, in the host's process namespace",
        ) from error
    if namespace:
        seen.add(namespace)
    return [(pid, namespace, found)]


def _process_ids() -> Iterator[int]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            yield int(name)


def _command(pid: int) -> str:
    with suppress(OSError):
        return os.fsdecode(_read(f"/proc/{pid}/comm")).strip()
    return "?"


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - quick
        return file.read()
