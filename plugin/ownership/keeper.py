"""
Keeping what this node owns: deadlines to the guard, lost leases, lost volumes.

One thread. It runs after each attempt to renew the node's lease and when the deadline
passes, and tells the guard until when the writers of each mounted volume may write. The
guard stops them by itself. The rest is done here: if no other node has acquired the
volume meanwhile, its lock is written again in the same epoch, and its writers run on;
else they are killed.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backends.errors import BackendError, RemoraError
from backends.replication_options import ReplicationOptions
from backends.system import clock, mounts
from backends.system.mountinfo import MountEntry
from plugin.errors import FencingError, NotOwnerError
from plugin.fencing.client import Guard
from plugin.fencing.held import HeldVolume, State
from plugin.logs import fields
from plugin.model import VolumeRecord
from plugin.ownership.failsafe import Failsafe
from plugin.ownership.resuming import resume
from plugin.ownership.view import OwnershipView

log = logging.getLogger(__name__)
# The pause between two rounds, as a share of the time for which members agree that we
# go on without etcd: their agreement has to be renewed before it ends.
_ROUND: Final = 0.3
_KILL_DEADLINE_S: Final = 10.0
_KILL_PAUSE_S: Final = 0.1
# A container may start so long after the answer to its Mount.
_LOST_GRACE_S: Final = 30.0
_STOP_WAIT_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Holding:
    """A volume that is mounted at *target* in *epoch*."""

    record: VolumeRecord
    epoch: int
    target: Path


class Keeper:
    """See the module's text."""

    def __init__(
        self,
        ownership: OwnershipView,
        guard: Guard,
        failsafe: Failsafe,
        *,
        freeze_max_s: float,
    ) -> None:
        self._ownership = ownership
        self._guard = guard
        self._failsafe = failsafe
        self._freeze_max_s = freeze_max_s
        self._held: dict[str, Holding] = {}
        # The volumes whose writers may write, as the last log lines say.
        self._valid: set[str] = set()
        self._states: Mapping[str, State] = {}
        self._lost_s: dict[str, float] = {}
        self._unmounting: set[str] = set()
        # Writers of a lost volume are being killed.
        self._dying = False
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._due = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)

    def start(self, mounted: Mapping[str, tuple[VolumeRecord, Path]]) -> None:
        """
        Begin with the volumes that an earlier process has left *mounted*, by id.

        Raises:
            FencingError: there is no guard, so nothing may be mounted.

        """
        self._guard.start()
        for volume_id, (record, target) in mounted.items():
            # Its lock may have gone with the lease. If its epoch is over, the first
            # round finds that out.
            head = self._ownership.heads.head(volume_id)
            self._held[volume_id] = Holding(record, head.epoch if head else 0, target)
        self._valid = set(self._held)
        self._ownership.membership.add_listener(self._due.set)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; the guard goes on with what it was told."""
        self._stopping.set()
        self._due.set()
        self._thread.join(_STOP_WAIT_S)
        self._guard.close()

    def hold(self, record: VolumeRecord, epoch: int, target: Path) -> None:
        """
        Have the guard watch over the volume, which was just mounted.

        Raises:
            NotOwnerError, StoreError: it is not ours any more: unmount it.
            FencingError: nobody would stop its writers: unmount it.

        """
        with self._lock:
            self._held[record.id] = Holding(record, epoch, target)
            self._valid.add(record.id)
        self._tell_guard()
        if self._failsafe.deadline_s(record.id) <= clock.boottime_s():
            self._ownership.require_valid()
        self._ownership.require_owned(record, epoch)

    def valid_epoch(self, record: VolumeRecord) -> int:
        """
        Return the epoch in which its writers may write at this moment, 0 if none.

        A lock that went with a lease is written again in the same epoch: a new epoch
        would end the writers of this one, and might fail to begin.

        Raises:
            NotOwnerError: another node owns it, and its writers here are being ended.

        """
        with self._lock:
            holding = self._held.get(record.id)
        if holding is None:
            return 0
        if record.id in self._lost_s:
            raise NotOwnerError(
                f"the containers that had '{record.name}' here are being ended: "
                "another node has taken it",
                hint="retry when they are gone",
                transient=True,
            )
        if not self._locked(holding):
            self._resume(holding)
        return holding.epoch if self._deadline_s(holding) > clock.boottime_s() else 0

    def drop(self, record: VolumeRecord) -> None:
        """Watch over the volume no more: it is not mounted."""
        with self._lock:
            if self._held.pop(record.id, None) is None:
                return
            self._valid.discard(record.id)
            self._lost_s.pop(record.id, None)
        try:
            self._guard.forget(record.id)
        except FencingError as error:
            log.warning("%s", error)  # the next round tells it again

    def held(self) -> list[tuple[VolumeRecord, int]]:
        """Return the volumes that are mounted, with their epochs."""
        return [(each.record, each.epoch) for each in self._holdings()]

    def state(self, volume_id: str) -> State | None:
        """Return what the guard last said of the volume's writers."""
        return self._states.get(volume_id)

    def stop_writers(self, record: VolumeRecord) -> bool:
        """
        Return whether no process of this node can write to the volume any more.

        They are killed: another node is about to own it.
        """
        with self._lock:
            holding = self._held.get(record.id)
        if holding is None:
            return not self._has_users(record)
        if ReplicationOptions.of(record.options).fence == "none":
            return False
        try:
            return self._kill(holding)
        except FencingError as error:
            log.warning("%s", error)
            return False

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._due.clear()
            try:
                self._round()
            except RemoraError as error:
                log.warning("%s", error)
            except Exception:
                log.exception("the keeper failed")
            self._due.wait(self._pause_s())

    def _pause_s(self) -> float:
        """Return the time until something may have to be done."""
        left_s = self._ownership.membership.deadline_s() - clock.boottime_s()
        round_s = _ROUND * self._failsafe.hold_s
        if self._dying or left_s <= 0:
            return round_s / 10
        return min(round_s, left_s)

    def _round(self) -> None:
        """Do what is due; nothing here waits for one volume, for all have deadlines."""
        self._failsafe.extend(self._holdings())
        # A guard that does not answer must not keep locks from being taken again.
        with suppress(RemoraError):
            self._tell_guard()
        self._dying = False
        for holding in self._holdings():
            try:
                if not self._ownership.still_owner(holding.record, holding.epoch):
                    self._lose(holding)
                elif not self._locked(holding):
                    self._resume(holding)
            except RemoraError as error:
                log.warning("%s", error, extra=fields(volume=holding.record.name))
        self._tell_guard()

    def _holdings(self) -> list[Holding]:
        with self._lock:
            return list(self._held.values())

    def _locked(self, holding: Holding) -> bool:
        """Return whether the volume's lock hangs on the lease that we have."""
        state = self._ownership.heads.read(holding.record.id)
        membership = self._ownership.membership
        return state.lock_lease == membership.lease and (
            state.locked_by == self._ownership.node_id
        )

    def _resume(self, holding: Holding) -> None:
        """Write the lock again, if there is a lease and no other node has come."""
        if not self._ownership.membership.lease:
            return
        try:
            resume(self._ownership, holding.record, holding.epoch)
        except RemoraError as error:
            log.info("'%s' is not regained yet: %s", holding.record.name, error)

    def _lose(self, holding: Holding) -> None:
        """
        End what still wants to write to the volume: another node owns it.

        A container that is just starting is ended as well: the guard looks for writers
        until the volume is unmounted, by an Unmount or in the end by us.
        """
        self._mark(holding, valid=False)
        record = holding.record
        if ReplicationOptions.of(record.options).fence == "none":
            return
        if self._guard.kill(record.id) not in ("killed", None):
            self._dying = True  # the guard goes on; it is asked again soon
            return
        now_s = clock.monotonic_s()
        with self._lock:
            if self._held.get(record.id) is not holding:
                return  # its Unmount came meanwhile: the kill makes the engine send it
            is_new = record.id not in self._lost_s
            lost_s = self._lost_s.setdefault(record.id, now_s)
            is_over = now_s - lost_s >= _LOST_GRACE_S
            begins = is_over and record.id not in self._unmounting
            if begins:
                self._unmounting.add(record.id)
        if is_new:
            log.warning(
                "another node owns it: its writers are ended",
                extra=fields(volume=record.name),
            )
            self._ownership.events.add(record, "writers-killed", epoch=holding.epoch)
        if begins:
            self._begin_unmount(holding)

    def _begin_unmount(self, holding: Holding) -> None:
        thread = threading.Thread(
            target=self._unmount, args=(holding,), name="unmount", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # no thread left: the next round tries again
            log.warning("%s", error, extra=fields(volume=holding.record.name))
            with self._lock:
                self._unmounting.discard(holding.record.id)

    def _unmount(self, holding: Holding) -> None:
        """Take a lost volume's mount away, which may take as long as storage wants."""
        record = holding.record
        try:
            with self._lock:
                still_ours = self._held.get(record.id) is holding
            if still_ours:  # else its Unmount came, and perhaps a Mount after it
                with suppress(RemoraError):
                    self._ownership.backend_of(record).unmount(
                        record.volume(), holding.target, deadline_s=_KILL_DEADLINE_S
                    )
            with self._lock:
                if self._held.get(record.id) is holding:
                    del self._held[record.id]
                    self._lost_s.pop(record.id, None)
        finally:
            with self._lock:
                self._unmounting.discard(record.id)

    def _kill(self, holding: Holding) -> bool:
        """Kill the writers, new ones included; return whether none is left."""
        deadline = clock.Deadline(_KILL_DEADLINE_S)
        while not deadline.passed():
            if self._guard.kill(holding.record.id) in ("killed", None):
                return True
            clock.pause(_KILL_PAUSE_S)
        return False

    def _has_users(self, record: VolumeRecord) -> bool:
        backend = self._ownership.backend_of(record)
        try:
            return bool(backend.users(record.volume(), Path("/nonexistent")))
        except BackendError:
            return True  # nobody can tell

    def _tell_guard(self) -> None:
        """Tell the guard all deadlines; log what has become valid or invalid."""
        with self._turn:
            told = []
            table = mounts.mounted()
            for holding in self._holdings():
                deadline_s = self._deadline_s(holding)
                self._mark(holding, valid=deadline_s > clock.boottime_s())
                entry = table.get(str(holding.target))
                if entry is not None:
                    told.append(self._as_held(holding, entry, deadline_s))
            self._states = self._guard.hold(told)

    def _deadline_s(self, holding: Holding) -> float:
        """Return until when writers of the volume may write; never after a loss."""
        record = holding.record
        try:
            if not self._ownership.still_owner(record, holding.epoch):
                return -math.inf
            locked = self._locked(holding)
        except RemoraError as error:  # what is not known of it harms no other volume
            log.warning("%s", error, extra=fields(volume=record.name))
            return -math.inf
        deadline_s = self._failsafe.deadline_s(record.id)
        if locked:
            deadline_s = max(deadline_s, self._ownership.membership.deadline_s())
        return deadline_s

    def _as_held(
        self, holding: Holding, entry: MountEntry, deadline_s: float
    ) -> HeldVolume:
        shared = self._ownership.is_shared(holding.record)
        return HeldVolume(
            id=holding.record.id,
            device=entry.device,
            root=entry.root,
            target=str(holding.target),
            # JSON knows no infinity.
            deadline_s=0.0 if deadline_s == -math.inf else deadline_s,
            freeze_max_s=self._freeze_max_s,
            policy=ReplicationOptions.of(holding.record.options).fence,
            source=entry.source if shared else "",
        )

    def _mark(self, holding: Holding, *, valid: bool) -> None:
        """Log the moment at which a volume's time ends, or goes on."""
        volume_id = holding.record.id
        with self._lock:
            if valid == (volume_id in self._valid):
                return
            (self._valid.add if valid else self._valid.discard)(volume_id)
        event = "regained" if valid else "lost"
        self._ownership.note(event, holding.record, holding.epoch)
