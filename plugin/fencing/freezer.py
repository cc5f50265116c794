"""
Stopping processes so that they can go on, and killing them before they do.

A control group is frozen as a whole if it holds nothing but writers. All other writers
are stopped one by one with SIGSTOP. A `Target` says what was stopped and can be written
down: another process can thaw or kill it later.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal

from backends.system import clock
from plugin.fencing import cgroups, processes
from plugin.fencing.processes import Process
from plugin.fencing.writers import Writers

# Most groups are frozen in a few milliseconds. A process that waits for a disk or a
# server may take for ever. It does not run its program meanwhile, so we do not wait.
_SETTLE_S: Final = 0.3
_SETTLE_INTERVAL_S: Final = 0.001


@dataclass(frozen=True, slots=True)
class Target:
    """
    What is stopped: a control group, or one process.

    ``identity`` tells it from a later group of that path, or process of that id.
    """

    kind: Literal["v1", "v2", "process"]
    path: str
    pid: int
    identity: int

    @property
    def exists(self) -> bool:
        """Whether it is there, and still the same."""
        if self.kind == "process":
            return processes.started(self.pid) == self.identity
        return cgroups.identity(self.path) == self.identity

    @property
    def lives(self) -> bool:
        """Whether a process of it is alive."""
        if not self.exists:
            return False
        pids = {self.pid} if self.kind == "process" else cgroups.members(self.path)
        found = map(processes.look, pids or ())
        return any(process is not None and process.alive for process in found)


# For each target, whether we have to thaw it: a container that its user has paused
# stays paused.
Stopped = Mapping[Target, bool]


def plan(found: Writers, stopped: Stopped) -> dict[Target, bool]:
    """Return the targets that stop all of *found*; *stopped* are stopped already."""
    targets: dict[Target, bool] = {}
    groups: dict[str, Target | None] = {}
    freezers = cgroups.hierarchies()
    for pid in found.pids:
        target = _group_target(pid, found, stopped, freezers, groups)
        if target is None:
            process = processes.look(pid)
            if process is None:
                continue
            target = Target("process", "", pid, process.started)
        if target not in targets:
            # We thaw what was running before we stopped it.
            targets[target] = stopped.get(target, False) or not is_stopped(target)
    return targets


def _group_target(
    pid: int,
    found: Writers,
    stopped: Stopped,
    freezers: Iterable[cgroups.Hierarchy],
    groups: dict[str, Target | None],
) -> Target | None:
    """Return *pid*'s group if all of it is to be frozen."""
    for freezer in freezers:
        directory = cgroups.group_of(pid, freezer)
        if directory is None:
            continue
        if directory not in groups:
            target = Target(freezer.kind, directory, 0, cgroups.identity(directory))
            # A process that enters a frozen group (docker exec) is frozen at once.
            whole = target in stopped or _all_writers(directory, found)
            groups[directory] = target if whole else None
        if groups[directory] is not None:
            return groups[directory]
    return None


def _all_writers(directory: str, found: Writers) -> bool:
    """Return whether the group holds writers of the volume and nobody else."""
    members = cgroups.members(directory)
    if members is None:
        return False
    for pid in members - found.pids:
        # It was born after the look for writers, or it is gone.
        namespace = processes.mount_namespace(pid)
        if namespace and namespace not in found.namespaces:
            return False
        if pid == os.getpid():
            return False
    return True


def is_stopped(target: Target) -> bool:
    """Return whether somebody has asked *target* to stop."""
    if target.kind != "process":
        return cgroups.is_frozen(target.kind, target.path)
    process = processes.look(target.pid)
    return process is None or process.stopped


def stop(targets: Collection[Target]) -> list[Target]:
    """Stop *targets*; return those that do not stand still after a bounded wait."""
    deadline = clock.Deadline(_SETTLE_S)
    waiting = [target for target in targets if not is_still(target)]
    while waiting and not deadline.passed():
        clock.pause(_SETTLE_INTERVAL_S)
        waiting = [target for target in waiting if not is_still(target)]
    return waiting


def is_still(target: Target) -> bool:
    """Return whether *target* stands still, after asking for it (once more)."""
    if not target.exists:
        return True
    if target.kind != "process":
        return cgroups.freeze(target.kind, target.path)
    process = processes.look(target.pid)
    if process is None or process.stopped:
        return True
    processes.send(target.pid, target.identity, signal.SIGSTOP)
    return not process.alive  # of a zombie, other threads may live


def any_frozen(members: Iterable[Process], stopped: Stopped) -> bool:
    """Return whether one of *members* is in a control group of *stopped*."""
    frozen = {target.path for target in stopped if target.kind != "process"}
    freezers = cgroups.hierarchies() if frozen else []
    return any(
        cgroups.group_of(process.pid, each) in frozen
        for process in members
        for each in freezers
    )


def running(members: Iterable[Process]) -> set[Target]:
    """Return those of *members* that nobody has stopped."""
    return {
        Target("process", "", process.pid, process.started)
        for process in members
        if not process.stopped
    }


def stop_group(group: int, members: Iterable[Process]) -> set[Target]:
    """Stop a process group; return what was not stopped before, children included."""
    before = {process.pid for process in members if process.stopped}
    with suppress(OSError):
        os.killpg(group, signal.SIGSTOP)
    stopped = set()
    for pid in processes.ids():
        process = processes.look(pid)
        if process is not None and process.group == group and pid not in before:
            stopped.add(Target("process", "", pid, process.started))
    return stopped


def thaw(targets: Collection[Target]) -> None:
    """Let *targets* go on."""
    for target in targets:
        if not target.exists:
            continue
        if target.kind == "process":
            processes.send(target.pid, target.identity, signal.SIGCONT)
        else:
            cgroups.thaw(target.kind, target.path)


def kill(targets: Collection[Target]) -> None:
    """Kill *targets*, which are stopped; those that are gone do not matter."""
    for target in targets:
        if not target.exists:
            continue
        if target.kind == "process":
            processes.send(target.pid, target.identity, signal.SIGKILL)
        else:
            cgroups.kill(target.kind, target.path)
