"""
What this node has of the last commits of volumes, for who only reads; see ADR 29.

A member's copy is its commit, exactly; it is read while nobody changes it. Where
containers write to the copy, the commit is at hand on btrfs alone: elsewhere it is read
as it is. Nothing that is read becomes owned, and no other node is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from backends.errors import VolumeBusyError
from backends.readonly.sources import Source, Tree
from backends.rsync.journal.commits import Commits
from backends.rsync.journal.staging import LIVE_NAME
from backends.system import btrfs
from backends.system.clock import Deadline
from plugin.errors import NotOwnerError, VolumeNotFoundError
from plugin.membership.directory import NodeDirectory
from plugin.membership.membership import Membership
from plugin.model import VolumeRecord
from plugin.ownership import copy_worth
from plugin.ownership.heads import Heads
from plugin.ownership.state import EMPTY, Commit, CopyState, Head
from plugin.ownership.view import initial_commit
from plugin.replication.journals import Journals


@dataclass(frozen=True, slots=True)
class LastCommits:
    """The `Sources` of the backend `readonly`."""

    journals: Journals
    heads: Heads
    nodes: NodeDirectory
    membership: Membership
    record_of: Callable[[str], VolumeRecord | None]
    knows: Callable[[str], bool]

    def find(self, name: str) -> Source | None:
        """Return the volume *name*, None without one; see `Sources.find`."""
        record = self.record_of(name)
        if record is None or record.phase == "creating":
            return None
        if record.phase == "removing":
            raise VolumeBusyError(f"'{name}' is being removed")
        return Source(record.backend, record.volume())

    def has_record(self, volume_id: str) -> bool:
        """Return whether there is a volume of that id; see `Sources.has_record`."""
        return self.knows(volume_id)

    @contextmanager
    def reading(self, name: str, deadline: Deadline) -> Iterator[Tree]:
        """Yield what is here of the last commit; see `Sources.reading`."""
        record = self.record_of(name)
        if record is None:
            raise VolumeNotFoundError(f"'{name}' was removed meanwhile")
        home = self.journals.home(record)
        if home is None:
            raise self._not_here(record, "has no copy")
        before = self._copy(record)
        if self.membership.alone or self._writes(record, before):
            with self._written(record, home, before, deadline) as tree:
                yield replace(tree, lacks=self.journals.unfit(record))
            self._require_same(record, before)
            return
        with self.journals.using(record, deadline) as journal:
            before = self._copy(record)
            tree = self._kept(record, journal.live, before)
            yield replace(tree, lacks=self.journals.unfit(record))
            self._require_same(record, before)

    @contextmanager
    def _written(
        self, record: VolumeRecord, home: Path, copy: CopyState, deadline: Deadline
    ) -> Iterator[Tree]:
        """Yield the newest of what this node's containers may write to."""
        live, head = home / LIVE_NAME, self.heads.read(record.id).head or Head()
        others = {*head.members} - {self.membership.own.id}
        if any(map(self.nodes.lives, others)):  # else no commits are made any more
            with self.journals.alone(record, deadline):
                commits = Commits(home, live)
                last = commits.last()
                snapshot = commits.of(last) if last else None
                # What was let go while no member was there has no snapshot.
                if last and snapshot and Commit(*last) >= head.committed:
                    tree = _of_commit(snapshot, Commit(*last), head)
                    yield replace(tree, quality=tree.quality or "snapshot")
                    return
        if not copy.live_epoch:
            quality = "quiesced"
        else:
            quality = "snapshot" if btrfs.subvolume(live) else "fuzzy"
        yield Tree(live, "", quality)

    def _kept(self, record: VolumeRecord, live: Path, copy: CopyState) -> Tree:
        """Return the copy, to which nobody writes, if it is a commit; else refuse."""
        head = self.heads.read(record.id).head or Head()
        if head.members and self.membership.own.id not in head.members:
            raise self._not_here(record, "keeps no copy any more")
        lineage = self.heads.lineage(record.id)
        if copy.live_epoch or copy_worth.diverged(copy, head, lineage):
            raise NotOwnerError(
                f"what this node has of '{record.name}' is no commit: it was not "
                "let go orderly",
                hint="retry: it is brought in step when the volume is mounted on "
                f"another node; or run it on {self._where(record, head)}",
                transient=True,
            )
        if copy.commit == EMPTY != head.committed:
            raise self._not_here(record, "has no whole copy yet")
        return _of_commit(live, copy.commit, head)

    def _writes(self, record: VolumeRecord, copy: CopyState) -> bool:
        """Return whether this boot owns the volume, so that it may be written to."""
        head, own = self.heads.read(record.id).head, self.membership.own
        return (
            head is not None
            and copy.live_epoch == head.epoch > 0
            and (head.owner, head.boot_id) == (own.id, own.boot_id)
            and head.phase == "owned"
            and not copy_worth.gone_back(copy, head)
        )

    def _require_same(self, record: VolumeRecord, before: CopyState) -> None:
        """Raise unless what was read is whole: who changes it does not wait for us."""
        after = self._copy(record)
        came = not before.live_epoch and after.commit != before.commit
        if came or after.live_epoch != before.live_epoch:
            raise VolumeBusyError(
                f"a container began or ended to write to '{record.name}' meanwhile",
                hint="retry",
            )

    def _copy(self, record: VolumeRecord) -> CopyState:
        initial = initial_commit(record, self.membership.own.id)
        copy = self.journals.copy_states.read(record.id, initial=initial)
        if copy is None:
            raise self._not_here(record, "has no copy any more")
        return copy

    def _not_here(self, record: VolumeRecord, why: str) -> NotOwnerError:
        own = self.membership.own.name
        where = self._where(record, self.heads.read(record.id).head)
        return NotOwnerError(
            f"node '{own}' {why} of '{record.name}', to be read here",
            hint=f"run it on {where}, or: remora replica add {record.name} {own}",
        )

    def _where(self, record: VolumeRecord, head: Head | None) -> str:
        """Return the nodes that have the newest bytes, for people."""
        holders = (head.holders or head.members) if head else ()
        nodes = holders or ((record.node,) if record.node else ())
        names = sorted(f"'{self.nodes.name_of(each)}'" for each in nodes)
        return f"node {' or '.join(names)}" if names else "a node that has one"


def _of_commit(directory: Path, commit: Commit, head: Head) -> Tree:
    """Return *directory*, which is *commit*, with what *head* says of that, if so."""
    if commit != head.committed:
        newer = str(head.committed) if head.committed > commit else ""
        return Tree(directory, str(commit), "", newer=newer)
    return Tree(directory, str(commit), head.quality, head.moment)
