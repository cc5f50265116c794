"""
The two freezers of control groups: version 1's hierarchy, version 2's `cgroup.freeze`.

A machine may have both, and a process is then in a group of each; which freezer is
usable for it is asked of the kernel each time. A frozen task of version 2 dies when it
is killed; one of version 1 only when it is thawed, but then before anything else.

Source: Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst, cgroup-v2.rst.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal

from backends.system.mountinfo import parse_mountinfo
from plugin.fencing import processes

Kind = Literal["v1", "v2"]
# The files of a group that freeze and thaw it.
_CONTROL: Final[dict[Kind, str]] = {"v1": "freezer.state", "v2": "cgroup.freeze"}
_FREEZE: Final[dict[Kind, bytes]] = {"v1": b"FROZEN", "v2": b"1"}
_THAW: Final[dict[Kind, bytes]] = {"v1": b"THAWED", "v2": b"0"}
# Rounds of killing a group's members. Frozen ones have no children, so a few rounds
# suffice; the guard comes back to members that come later.
_KILL_ROUNDS_MAX: Final = 20


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A mounted freezer; ``root`` is the group that its mount point shows."""

    kind: Kind
    root: str
    mount_point: str


def hierarchies() -> list[Hierarchy]:
    """Return the freezers that are mounted here, those of version 2 first."""
    found: list[Hierarchy] = []
    table = processes.read("/proc/self/mountinfo") or b""
    for entry in parse_mountinfo(table.decode(errors="surrogateescape")):
        if entry.filesystem == "cgroup2":
            found.insert(0, Hierarchy("v2", entry.root, entry.mount_point))
        elif entry.filesystem == "cgroup" and "freezer" in entry.super_options.split(
            ","
        ):
            found.append(Hierarchy("v1", entry.root, entry.mount_point))
    return found


def group_of(pid: int, hierarchy: Hierarchy) -> str | None:
    """Return the directory of *pid*'s group, None if it has none that can freeze."""
    text = (processes.read(f"/proc/{pid}/cgroup") or b"").decode(
        errors="surrogateescape"
    )
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy.kind == "v2":
            ours = number == "0" and not controllers
        else:
            ours = "freezer" in controllers.split(",")
        # The path of a group outside our cgroup namespace begins with "/..".
        if ours and not path.startswith("/.."):
            return _directory(path, hierarchy)
    return None


def _directory(path: str, hierarchy: Hierarchy) -> str | None:
    root = hierarchy.root.rstrip("/")
    if not f"{path}/".startswith(f"{root}/"):
        return None
    directory = hierarchy.mount_point + path[len(root) :].rstrip("/")
    # The topmost group has no such file; in a managed plugin it is read-only.
    control = f"{directory}/{_CONTROL[hierarchy.kind]}"
    return directory if os.access(control, os.W_OK) else None


def identity(directory: str) -> int:
    """Return a number that no later group of this name has, 0 if the group is gone."""
    try:
        return os.stat(directory).st_ino
    except OSError:
        return 0


def members(directory: str) -> set[int] | None:
    """
    Return the processes of the group and of those below it.

    Return None if some cannot be listed: in a threaded group, or in one with processes
    outside this process namespace.
    """
    pids: set[int] = set()
    for inside, _, _ in os.walk(directory):
        listed = processes.read(f"{inside}/cgroup.procs")
        if listed is None:
            if os.path.isdir(inside):
                return None
            continue
        pids.update(map(int, listed.split()))
    return None if 0 in pids else pids


def is_frozen(kind: Kind, directory: str) -> bool:
    """Return whether somebody has asked to freeze this very group, done or not."""
    if kind == "v2":
        return (processes.read(f"{directory}/cgroup.freeze") or b"").strip() == b"1"
    own = processes.read(f"{directory}/freezer.self_freezing")
    return (own or b"").strip() == b"1"


def freeze(kind: Kind, directory: str) -> bool:
    """
    Freeze the group; return whether all of it is frozen by now.

    Call it again until it is: tasks of a version 1 group may fork meanwhile.
    """
    _write(f"{directory}/{_CONTROL[kind]}", _FREEZE[kind])
    if kind == "v2":
        events = processes.read(f"{directory}/cgroup.events") or b"frozen 1"
        return b"frozen 1" in events
    state = processes.read(f"{directory}/freezer.state") or b"FROZEN"
    return state.strip() == b"FROZEN"


def thaw(kind: Kind, directory: str) -> None:
    """Let the group go on."""
    _write(f"{directory}/{_CONTROL[kind]}", _THAW[kind])


def kill(kind: Kind, directory: str) -> None:
    """Kill all processes of a frozen group; none of them runs again."""
    if kind == "v2" and _write(f"{directory}/cgroup.kill", b"1"):
        return
    signalled: set[int] = set()
    for _ in range(_KILL_ROUNDS_MAX):
        left = (members(directory) or set()) - signalled
        if not left:
            break
        for pid in left:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        signalled |= left
    # The signal is pending: they die of it before they return to their program.
    if kind == "v1":
        thaw(kind, directory)


def _write(path: str, content: bytes) -> bool:
    """Return whether *content* was written; a group may vanish at any time."""
    try:
        descriptor = os.open(path, os.O_WRONLY)
    except OSError:
        return False
    try:
        os.write(descriptor, content)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
