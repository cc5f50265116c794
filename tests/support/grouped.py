"""A node's volumes that are committed together, without the other nodes' daemons."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from backends.rsync.journal.journal import Journal
from backends.rsync.journal.scan import Changes
from backends.system.clock import Deadline
from plugin.events.log import Event
from plugin.fencing.client import Guard
from plugin.fencing.pausing import Pausing
from plugin.model import VolumeRecord
from plugin.replication.committing import Committing
from plugin.replication.journals import Journals
from plugin.replication.looking import Looking
from plugin.replication.meeting import Meeting
from plugin.replication.moments import Moments
from plugin.replication.pauses import PauseFacts, Pauses
from plugin.replication.progress import Progress
from plugin.replication.together import Held, Together
from tests.fault.two_nodes import World
from tests.fencing.world import kill_guard
from tests.support.journal_trees import carry
from tests.support.pausing import DEADLINE_S, held

# Of a commit: its quality, and the moment that it shares with others.
Made = tuple[str, str]


class GroupOwner:
    """Volumes on *disk* that are mounted, and the parts that make their commits."""

    def __init__(self, disk: Path, run_dir: Path) -> None:
        self.world = World(disk, "alpha")
        self.journals = Journals(self.world.pool, self.world.ownership.copy_states)
        self.guard = Guard(run_dir)
        self.guard.start()
        self.progress = Progress()
        self.progress.pauses = Pauses(rest_s=0)  # however slow the machine is
        self.moments = Moments(
            Looking(self.journals, interval_s=600),
            self.progress.pauses,
            Pausing(self.guard),
        )
        self.together = Together(
            *(self.world.ownership, self.moments, self.progress),
            self.world.catalogue.of_group,
        )
        self._committing = Committing(self.world.ownership, self.moments)
        self.mounted: dict[str, Path] = {}
        self._made: dict[str, Made] = {}

    def record(self, name: str) -> VolumeRecord:
        return self.world.volumes.views.existing(name).record

    def mount(self, name: str, options: Mapping[str, str]) -> Path:
        """Create and mount a volume; return where."""
        self.world.volumes.creation.create(name, options)
        self.mounted[name] = self.world.volumes.mounting.mount(name, "engine")
        self._hold()
        return self.mounted[name]

    def unmount(self, name: str) -> None:
        """Let a volume go."""
        subprocess.run(["umount", self.mounted.pop(name)], check=True)
        self.journals.unwatch(self.record(name))
        self._hold()

    def _hold(self) -> None:
        self.guard.hold([held(self.record(k), at) for k, at in self.mounted.items()])

    def rounds(self, homes: Mapping[str, Path]) -> Mapping[str, Made]:
        """Have a round of all volumes; their members are in *homes*."""
        self._made = {}
        volumes: list[Held] = []
        for name in self.mounted:
            record = self.record(name)
            head = self.world.ownership.heads.read(record.id).head
            assert head is not None
            volumes.append((record, head.epoch))

        def work(record: VolumeRecord, epoch: int, meeting: Meeting) -> None:
            member = Journal(homes[record.name], record.id)
            try:
                self._bring(record, epoch, meeting, member)
            finally:
                member.close()

        for unit in self.together.units(volumes).values():
            self.together.round(unit, work)
        return self._made

    def _bring(
        self, record: VolumeRecord, epoch: int, meeting: Meeting, member: Journal
    ) -> None:
        base = member.commit() if member.commit() != (0, 0) else None
        with self.journals.using(record, Deadline(DEADLINE_S)) as journal:
            journal.moments.expect({base} if base else ())
            self._committing.advance(record, epoch, journal, meeting, anew=False)
            if journal.commit() != base:
                package = journal.pack(base)
                while missing := carry(package, member):
                    package = journal.pack(base, only=missing)
                member.apply()
            self._made[record.name] = journal.quality(), journal.moment

    def die_in_pause(self) -> None:
        """Have the process die while the next pause lasts."""

        def die(*_: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        self.moments.looking.look_again = die  # type: ignore[assignment, method-assign]

    def hang_in_pause(self, name: str, seconds: float) -> None:
        """Have a volume take so long in pauses."""
        looking, volume_id = self.moments.looking, self.record(name).id
        require_quiet = looking.require_quiet

        def hang(record: VolumeRecord) -> None:
            if record.id == volume_id:
                time.sleep(seconds)
            require_quiet(record)

        looking.require_quiet = hang  # type: ignore[method-assign]

    def be_late(self, name: str) -> None:
        """Have a volume be looked at for longer than the others wait."""
        moments, volume_id = self.moments, self.record(name).id
        look = moments.looking.look

        def late(record: VolumeRecord, journal: Journal) -> Changes:
            if record.id == volume_id:
                time.sleep(1)
            return look(record, journal)

        moments.looking.look = late  # type: ignore[method-assign]
        moments.meeting_of = partial(  # type: ignore[method-assign]
            _impatient, moments.meeting_of
        )

    def close(self) -> None:
        for name in [*self.mounted]:
            self.unmount(name)
        self.guard.close()
        self.journals.close()
        self.world.close()


def _impatient(meeting_of: Callable[..., Meeting], *volume_ids: str) -> Meeting:
    found = meeting_of(*volume_ids)
    found._wait_s = 0.5
    return found


_owners: list[GroupOwner] = []


def _begin(disk: Path, run_dir: Path) -> None:
    _owners.append(GroupOwner(disk, run_dir))


def _mount(name: str, options: Mapping[str, str]) -> Path:
    return _owners[0].mount(name, options)


def _unmount(name: str) -> None:
    _owners[0].unmount(name)


def _rounds(homes: Mapping[str, Path]) -> Mapping[str, Made]:
    return _owners[0].rounds(homes)


def _facts(name: str) -> PauseFacts:
    return _owners[0].progress.pauses.facts(_owners[0].record(name).id)


def _left_out(name: str) -> str:
    return _owners[0].together.left_out(_owners[0].record(name).id)


def _events(name: str) -> list[Event]:
    return _owners[0].world.events.newest(_owners[0].record(name).id, 100)


def _die_in_pause() -> None:
    _owners[0].die_in_pause()


def _hang_in_pause(name: str, seconds: float) -> None:
    _owners[0].hang_in_pause(name, seconds)


def _be_late(name: str) -> None:
    _owners[0].be_late(name)


def _end() -> None:
    _owners.pop().close()


class GroupProcess:
    """A `GroupOwner` in a process of its own: none pauses itself or its children."""

    def __init__(self, disk: Path, run_dir: Path, group: str) -> None:
        self._process = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        self._group = group
        self._call(_begin, disk, run_dir)

    def _call(self, function: Callable[..., Any], *arguments: object) -> Any:
        return self._process.submit(function, *arguments).result(DEADLINE_S)

    def mount(self, name: str, **options: str) -> Path:
        """Create and mount a volume of the group; return where."""
        given = {"group": self._group, **options} if self._group else options
        mounted: Path = self._call(_mount, name, given)
        return mounted

    def unmount(self, name: str) -> None:
        """Let a volume go."""
        self._call(_unmount, name)

    def rounds(self, homes: Mapping[str, Path]) -> Mapping[str, Made]:
        """Have a round of all volumes; their members are in *homes*."""
        made: Mapping[str, Made] = self._call(_rounds, homes)
        return made

    def facts(self, name: str) -> PauseFacts:
        """Return what is known of a volume's pauses."""
        facts: PauseFacts = self._call(_facts, name)
        return facts

    def left_out(self, name: str) -> str:
        """Return why a volume was left out of the last moment."""
        why: str = self._call(_left_out, name)
        return why

    def events(self, name: str) -> list[Event]:
        """Return the newest events of a volume, the newest first."""
        events: list[Event] = self._call(_events, name)
        return events

    def die_in_pause(self) -> None:
        """Have the process die while the next pause lasts."""
        self._call(_die_in_pause)

    def hang_in_pause(self, name: str, seconds: float) -> None:
        """Have a volume take so long in pauses."""
        self._call(_hang_in_pause, name, seconds)

    def be_late(self, name: str) -> None:
        """Have a volume be looked at for longer than the others wait."""
        self._call(_be_late, name)

    def close(self) -> None:
        """End it in order, if it lives."""
        with suppress(BrokenProcessPool):
            self._call(_end)
        self._process.shutdown()


@contextmanager
def group_owner(disk: Path, group: str = "db") -> Iterator[GroupProcess]:
    """Yield a new owner on *disk*; its guard ends with it."""
    # The path of a socket must be short.
    with tempfile.TemporaryDirectory(prefix="rg") as run_dir:
        owner = GroupProcess(disk, Path(run_dir), group)
        try:
            yield owner
        finally:
            owner.close()
            kill_guard(Path(run_dir))
