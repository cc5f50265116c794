"""
Which processes can write to a volume.

In a namespace that shows the volume's directory at a mount point of its own (a
container), every process can. In the machine's own namespace, and where only a copy of
one of its mounts shows it, only processes that have something open below it count as
writers: the others are bystanders.

All volumes are looked for at once: a lease is the node's, so all pass their deadline
together. Nothing here touches the volume itself, which may hang.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, NamedTuple

from backends.system import clock
from backends.system.mountinfo import (
    MountEntry,
    OwnPaths,
    Place,
    parse_mountinfo,
    places_of,
    sees_less,
    threads,
)
from plugin.fencing import processes
from plugin.fencing.held import HeldVolume
from plugin.fencing.processes import Process

# A look at thousands of processes takes a fifth of this. With more, a second look later
# is better than waiting.
_OPEN_FILES_BUDGET_S: Final = 1.0
_INIT: Final = 1
# Each takes ten microseconds.
_NEWEST_LOOKS: Final = 8


@dataclass(slots=True)
class Writers:
    """
    The writers of one volume: processes, and namespaces full of them.

    ``fleeting``: processes ended during the look; they may have left children in these
    namespaces. ``unfinished``: not all open files were looked at.
    """

    pids: set[int] = field(default_factory=set)
    namespaces: set[int] = field(default_factory=set)
    fleeting: bool = False
    unfinished: bool = False


@dataclass(slots=True)
class _Namespace:
    """
    A mount namespace: the processes in it, newest first, and what it shows.

    ``shown`` are volumes at mount points of the namespace's own, ``points`` the other
    mount points of volumes: those in the machine's own namespace, and copies of them.
    """

    pids: list[int] = field(default_factory=list)
    shown: set[str] = field(default_factory=set)
    points: dict[str, str] = field(default_factory=dict)
    is_read: bool = False


def find(
    volumes: Sequence[HeldVolume], *, never: Collection[int], open_files: bool
) -> dict[str, Writers]:
    """
    Return the writers of each of *volumes*, by its id.

    Processes of *never*, and their descendants, are left out. Without *open_files* only
    namespaces are looked at, which is quicker.
    """
    found = {volume.id: Writers() for volume in volumes}
    watched: dict[int, dict[str, str]] = {}
    spaces, fleeting = _namespaces(volumes)
    for number, space in spaces.items():
        for volume_id in space.shown:
            found[volume_id].namespaces.add(number)
            found[volume_id].pids.update(space.pids)
        points = {
            at: each for at, each in space.points.items() if each not in space.shown
        }
        if points:
            watched[number] = points
    if open_files:
        _add_openers(found, watched, spaces)
    spared = frozenset({*never, os.getpid()})
    for writers in found.values():
        looked = [(pid, processes.look(pid)) for pid in writers.pids]
        gone = any(process is None for _, process in looked)
        writers.fleeting = bool(writers.namespaces) and (fleeting or gone)
        writers.pids = {pid for pid, process in looked if _may_stop(process, spared)}
    return found


def groups_within(
    namespaces: Collection[int], *, never: Collection[int]
) -> dict[int, list[Process]]:
    """Return the process groups that have members in *namespaces* only."""
    spared = frozenset({*never, os.getpid()})
    groups: dict[int, list[Process]] = defaultdict(list)
    mixed = {0, _INIT}  # zero: its leader is not in our process namespace
    for pid in chain(_newest(), _newest_first()):
        process = processes.look(pid)
        number = processes.mount_namespace(pid)
        if process is None or not number:
            continue
        if number in namespaces and _may_stop(process, spared):
            groups[process.group].append(process)
        else:
            mixed.add(process.group)
    return {group: each for group, each in groups.items() if group not in mixed}


def _own_points(volumes: Sequence[HeldVolume], clues: _Clues) -> _Points:
    """
    Return the mount points of *volumes* in our namespace and in the machine's own.

    They are the daemon's, where schedulers want a volume, and what a kubelet makes of
    that for a part of it. All of them come into the namespaces of other services.
    """
    found = {volume.id: {volume.target} for volume in volumes}
    places: list[Place] = []
    for table in dict.fromkeys(f"/proc/{pid}/mountinfo" for pid in ("self", _INIT)):
        with suppress(OSError), open(table, "rb") as lines:
            for line in lines:
                for volume in clues.volumes(line):
                    for entry in parse_mountinfo(_text(line)):
                        if _shows(entry, volume):
                            found[volume.id].add(entry.mount_point)
        parents = {os.path.dirname(path) for each in found.values() for path in each}
        with suppress(OSError), open(table, "rb") as lines:
            places += places_of(parents, lines)
    return _Points(found, _gathered(dict.fromkeys(places)))


def _gathered(places: Collection[Place]) -> list[Place]:
    """
    Return instead of *places* in one mount a directory that has them all.

    Each line of each namespace's table is compared with each place, and a kubelet has
    a directory for each volume of each pod.
    """
    groups: dict[tuple[str, ...], list[Place]] = defaultdict(list)
    for place in places:
        # What both names end with lies in the mount.
        path, inside = place.path, place.inside
        while os.path.basename(path) and os.path.basename(path) == os.path.basename(
            inside
        ):
            path, inside = os.path.dirname(path), os.path.dirname(inside)
        groups[place.device, place.mount, path, inside].append(place)
    gathered = []
    for (device, mount, *_), group in groups.items():
        path = os.path.commonpath([each.path for each in group])
        inside = os.path.commonpath([each.inside for each in group])
        # A container may see a part of it: a kubelet's directory, or a pod's.
        below = set()
        for each in group:
            within = each.inside
            while within != inside and within not in below:
                below.add(within)
                within = os.path.dirname(within)
        gathered.append(Place(path, device, inside, mount, frozenset(below)))
    return gathered


def _namespaces(
    volumes: Sequence[HeldVolume],
) -> tuple[dict[int, _Namespace], bool]:
    """Return all mount namespaces, and whether a process ended meanwhile."""
    clues = _Clues(volumes)
    points = _own_points(volumes, clues)
    shared = {processes.mount_namespace(os.getpid()), processes.mount_namespace(_INIT)}
    spaces: dict[int, _Namespace] = defaultdict(_Namespace)
    fleeting = False
    for pid in chain(_newest(), sorted(_newest_first(), key=sees_less)):
        number = processes.mount_namespace(pid)
        if not number:
            process = processes.look(pid)
            fleeting = fleeting or process is None or not process.kernel_thread
            continue
        space = spaces[number]
        space.pids.append(pid)
        if not space.is_read:
            own = None if number in shared else _Own(points)
            for thread in threads(pid):
                with suppress(OSError), open(f"{thread}/mountinfo", "rb") as table:
                    for line in table:
                        space.is_read = True
                        _note(space, line, clues, own)
                if space.is_read:
                    break
    return spaces, fleeting


def _newest_first() -> list[int]:
    """Return all process ids, highest first: a short-lived one has to be seen early."""
    return sorted(processes.ids(), reverse=True)


def _newest() -> Iterator[int]:
    """
    Yield the processes that were made last, as far as they see all their mounts.

    One that ends within a millisecond has ended when a list of all comes to it.
    """
    before = 0
    for _ in range(_NEWEST_LOOKS):
        pid = processes.newest()
        if pid != before and processes.is_first_thread(pid) and not sees_less(pid):
            yield pid
        before = pid


class _Points(NamedTuple):
    """The mount points of volumes, by their ids, and the ``places`` they are in."""

    of: dict[str, set[str]]
    places: list[Place]


class _Own:
    """What in one namespace's table is a copy of our mounts."""

    def __init__(self, points: _Points) -> None:
        self.points = points.of
        self.paths = OwnPaths(points.places)


class _Clues:
    """
    Texts by which a line of a mount table may show one of *volumes*.

    Whoever may make namespaces decides how long a table is. So each is gone through
    line by line, and all volumes are looked for at once.
    """

    def __init__(self, volumes: Sequence[HeldVolume]) -> None:
        clues = {_clue(volume) for volume in volumes}
        # The longest one that fits is found; what begins it is in the line as well.
        self._of_clue = {
            clue: [each for each in volumes if clue.startswith(_clue(each))]
            for clue in clues
        }
        longest_first = sorted(clues, key=len, reverse=True)
        self._any = re.compile(b"|".join(map(re.escape, longest_first)))

    def volumes(self, line: bytes) -> Iterator[HeldVolume]:
        """Yield the volumes that *line* may show."""
        for clue in {*self._any.findall(line)} if self._of_clue else ():
            yield from self._of_clue[clue]


def _note(space: _Namespace, line: bytes, clues: _Clues, own: _Own | None) -> None:
    """Add to *space* what a *line* of its table shows; the machine's has no *own*."""
    if own is not None:
        own.paths.read(line)
    for volume in clues.volumes(line):
        for entry in parse_mountinfo(_text(line)):
            if volume.id in space.shown or not _shows(entry, volume):
                continue
            ours = own.points.get(volume.id, set()) if own else set()
            if own is None or ours & own.paths.of(entry):
                space.points[entry.mount_point] = volume.id
            else:
                space.shown.add(volume.id)


def _text(line: bytes) -> str:
    return line.decode(errors="surrogateescape")


def _clue(volume: HeldVolume) -> bytes:
    """Return a text that is in each mount table which shows *volume*."""
    # It ends before the first character that the kernel escapes.
    return os.fsencode(re.split(r"[ \t\n\\#]", volume.source or volume.root)[0])


def _shows(entry: MountEntry, volume: HeldVolume) -> bool:
    """Return whether *entry* is *volume*'s directory or one below it."""
    if volume.source:
        same = f"{entry.source}/".startswith(f"{volume.source.rstrip('/')}/")
    else:
        same = entry.device == volume.device
    return same and f"{entry.root}/".startswith(f"{volume.root.rstrip('/')}/")


def _add_openers(
    found: dict[str, Writers],
    watched: dict[int, dict[str, str]],
    spaces: dict[int, _Namespace],
) -> None:
    """Add to *found* the processes with a file open below a point of *watched*."""
    deadline = clock.Deadline(_OPEN_FILES_BUDGET_S)
    for namespace, points in watched.items():
        prefixes = tuple(points)
        for pid in spaces[namespace].pids:
            for path in _open_paths(pid):
                if deadline.passed():
                    for each in found.values():
                        each.unfinished = True
                    return
                if not path.startswith(prefixes):
                    continue
                for point, volume_id in points.items():
                    if f"{path}/".startswith(f"{point}/"):
                        found[volume_id].pids.add(pid)


def _open_paths(pid: int) -> Iterator[str]:
    """Yield the paths of what *pid* has open or mapped; to read them does no I/O."""
    for thread in processes.file_tables(pid):
        links = [f"{thread}/cwd", f"{thread}/root"]
        with suppress(OSError):
            links += [f"{thread}/fd/{name}" for name in os.listdir(f"{thread}/fd")]
        for link in links:
            with suppress(OSError):
                yield os.readlink(link)
        for mapped in processes.shared_mappings(thread):
            yield os.fsdecode(mapped.path)


def _may_stop(process: Process | None, spared: frozenset[int]) -> bool:
    return (
        process is not None
        and process.pid != _INIT
        and not process.kernel_thread
        and not processes.descends(process.pid, spared)
    )
