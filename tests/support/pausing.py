"""An owner's copy whose writers stand still for its commits, as a daemon has it."""

from __future__ import annotations

import itertools
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from backends.rsync.journal.journal import Journal
from backends.rsync.journal.scan import Changes
from backends.system.clock import Deadline, boottime_s
from backends.system.mountinfo import parse_mountinfo
from plugin.fencing import cgroups
from plugin.fencing.client import Guard
from plugin.fencing.held import HeldVolume
from plugin.fencing.pausing import Pausing
from plugin.model import VolumeRecord
from plugin.replication.journals import Journals
from plugin.replication.looking import Looking
from plugin.replication.moments import Moments
from plugin.replication.pauses import PauseFacts, Pauses
from tests.fault.two_nodes import World
from tests.fencing.world import kill_guard
from tests.support.journal_trees import carry

DEADLINE_S = 60.0
# $0 is the group; what follows is the command that is to be in it.
_JOIN = 'echo $$ > "$0/cgroup.procs"; exec "$@"'


@contextmanager
def control_group() -> Iterator[Path]:
    """Yield a new control group of version 2; what is left in it dies at the end."""
    found = [e.mount_point for e in cgroups.hierarchies() if e.kind == "v2"]
    if not found:
        pytest.skip("needs control groups of version 2")
    group = Path(found[0]) / f"remora-tests-pause-{uuid.uuid4()}"
    group.mkdir()
    try:
        yield group
    finally:
        end = time.monotonic() + DEADLINE_S
        (group / "cgroup.freeze").write_text("0")
        while group.exists():
            (group / "cgroup.kill").write_text("1")
            try:
                group.rmdir()
            except OSError:
                assert time.monotonic() < end, "processes do not leave their group"
                time.sleep(0.05)


def joining(group: Path, *command: str | Path) -> list[str]:
    """Return *command* as one that is run in *group*."""
    return ["sh", "-c", _JOIN, *map(str, (group, *command))]


def held(record: VolumeRecord, mounted: Path) -> HeldVolume:
    """Return the volume, mounted at *mounted*, as a guard is told of it."""
    table = Path("/proc/self/mountinfo").read_text()
    at = str(mounted)
    entry = [each for each in parse_mountinfo(table) if each.mount_point == at][-1]
    return HeldVolume(
        id=record.id,
        device=entry.device,
        root=entry.root,
        target=at,
        deadline_s=boottime_s() + 3600,
    )


class PausedOwner:
    """A volume on *disk* that is mounted, and the parts that make its commits."""

    def __init__(self, disk: Path, run_dir: Path, consistency: str) -> None:
        self.world = World(disk, "alpha")
        given = {"consistency": consistency} if consistency else {}
        self.world.volumes.creation.create("v", given)
        self.mounted = self.world.mount()
        self.record = self.world.volumes.views.existing("v").record
        self.journals = Journals(self.world.pool, self.world.ownership.copy_states)
        self.guard = Guard(run_dir)
        self.guard.start()
        self.guard.hold([held(self.record, self.mounted)])
        self.pauses = Pauses(rest_s=0)  # however slow the machine is
        looking = Looking(self.journals, interval_s=600)
        self.moments = Moments(looking, self.pauses, Pausing(self.guard))
        self.numbers = itertools.count(1)

    @property
    def facts(self) -> PauseFacts:
        return self.pauses.facts(self.record.id)

    def advance(self, journal: Journal) -> Changes:
        """Make a commit, and return what it changes."""
        changes = self.moments.looking.look(self.record, journal)
        meeting = self.moments.meeting_of(self.record.id)
        changes = self.moments.take(self.record, journal, changes, meeting)
        journal.record(changes, (1, next(self.numbers)))
        return changes

    def replicate(self, homes: Sequence[Path]) -> str:
        """Bring one commit to the members in *homes*; return its quality."""
        members = [Journal(home, self.record.id) for home in homes]
        try:
            with self.journals.using(self.record, Deadline(DEADLINE_S)) as journal:
                return self._replicate(journal, members)
        finally:
            for each in members:
                each.close()

    def _replicate(self, journal: Journal, members: Sequence[Journal]) -> str:
        bases = [e.commit() if e.commit() != (0, 0) else None for e in members]
        journal.moments.expect({each for each in bases if each})
        self.advance(journal)
        package = journal.pack(*bases)
        for base, member in zip(bases, members, strict=True):
            if base != bases[0]:
                package = journal.repack(base)
            while missing := carry(package, member):
                package = journal.pack(base, only=missing)
            member.apply()
            assert member.commit() == journal.commit()
        return journal.quality()

    def close(self) -> None:
        self.guard.close()
        self.journals.close()
        subprocess.run(["umount", self.mounted], check=True, timeout=DEADLINE_S)
        self.world.close()


_owners: list[PausedOwner] = []


def _begin(disk: Path, run_dir: Path, consistency: str) -> tuple[str, Path]:
    _owners.append(PausedOwner(disk, run_dir, consistency))
    return _owners[0].record.id, _owners[0].mounted


def _facts() -> PauseFacts:
    return _owners[0].facts


def _replicate(homes: Sequence[Path]) -> str:
    return _owners[0].replicate(homes)


def _end() -> None:
    _owners.pop().close()


class OwnerProcess:
    """A `PausedOwner` in a process of its own: none pauses itself or its children."""

    def __init__(self, disk: Path, run_dir: Path, consistency: str) -> None:
        self._process = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        self.volume_id, self.mounted = self._call(_begin, disk, run_dir, consistency)

    def _call(self, function: Callable[..., Any], *arguments: object) -> Any:
        return self._process.submit(function, *arguments).result(DEADLINE_S)

    def replicate(self, *homes: Path) -> str:
        """Bring one commit to the members in *homes*; return its quality."""
        quality: str = self._call(_replicate, homes)
        return quality

    @property
    def facts(self) -> PauseFacts:
        """What is known of the pauses."""
        facts: PauseFacts = self._call(_facts)
        return facts

    def close(self) -> None:
        """End it in order."""
        self._call(_end)
        self._process.shutdown()


@contextmanager
def paused_owner(disk: Path, consistency: str = "") -> Iterator[OwnerProcess]:
    """Yield a new owner on *disk*; its guard ends with it."""
    # The path of a socket must be short.
    with tempfile.TemporaryDirectory(prefix="rp") as run_dir:
        owner = OwnerProcess(disk, Path(run_dir), consistency)
        try:
            yield owner
        finally:
            owner.close()
            kill_guard(Path(run_dir))
