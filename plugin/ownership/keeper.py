"""
Keeping what this node owns: deadlines to the guard, lost leases, lost volumes.

One thread. It runs after each attempt to renew the node's lease and when the deadline
passes, and tells the guard until when the writers of each mounted volume may write. The
guard stops them by itself. The rest is done here: if no other node has acquired the
volume meanwhile, its lock is written again in the same epoch, and its writers run on;
else they are killed. Unmounting is left to those who hold the volume's lock. No disk is
asked for anything here: one that hangs would end the writers of all volumes.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from backends.errors import RemoraError
from backends.system import clock, mounts
from plugin.errors import FencingError, NotOwnerError, StoreError
from plugin.fencing.client import Guard
from plugin.fencing.pausing import Pausing
from plugin.logs import fields
from plugin.model import VolumeRecord
from plugin.ownership.failsafe import Failsafe
from plugin.ownership.holding import Holding, LeftCopies
from plugin.ownership.resuming import TOGETHER_MAX, resume_all
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


# The volumes that an earlier process has left mounted, by id, and where.
LeftMounted = Callable[[], Mapping[str, tuple[VolumeRecord, Path]]]


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
        self.pausing = Pausing(guard)
        self._failsafe = failsafe
        self._freeze_max_s = freeze_max_s
        self._held: dict[str, Holding] = {}
        # Writers of a lost volume are being killed.
        self._dying = False
        self._left_mounted: LeftMounted | None = None
        self._left_copies = LeftCopies(ownership)
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._due = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)

    def start(self, left_mounted: LeftMounted) -> None:
        """
        Begin with the volumes that an earlier process has left mounted.

        Until *left_mounted* can tell them, the guard is told nothing, and goes on with
        what that process has told it: to hold less would unguard what is mounted.

        Raises:
            FencingError: there is no guard, so nothing may be mounted.

        """
        self._guard.start()
        self._left_mounted = left_mounted
        with suppress(StoreError):  # etcd is away, and nothing was ever read from it
            self._take_over()
        self._ownership.membership.add_listener(self._due.set)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; the guard goes on with what it was told."""
        self._stopping.set()
        self._due.set()
        self._thread.join(_STOP_WAIT_S)
        self._guard.close()

    def hold(self, record: VolumeRecord, epoch: int, target: Path | None) -> None:
        """
        Have the guard watch over the volume, which was just mounted.

        Without *target* it is not: its lock is kept while the daemon changes its bytes.

        Raises:
            NotOwnerError, StoreError: it is not ours any more: unmount it.
            FencingError: nobody would stop its writers: unmount it.

        """
        with self._lock:
            self._held[record.id] = Holding(record, epoch, target)
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
        if not self._still_ours(holding):
            # A new epoch's containers would be ended with them, or meet their writes.
            raise NotOwnerError(
                f"the containers that had '{record.name}' here are being ended: "
                "another node has taken it",
                hint="retry when they are gone",
                transient=True,
            )
        if not self._locked(holding):
            self._regain([holding])
        until_s = self._deadline_s(holding)
        may_write = until_s is not None and until_s > clock.boottime_s()
        return holding.epoch if may_write else 0

    def drop(self, record: VolumeRecord) -> None:
        """Watch over the volume no more: it is not mounted."""
        with self._lock:
            if self._held.pop(record.id, None) is None:
                return
        try:
            self._guard.forget(record.id)
        except FencingError as error:
            log.warning("%s", error)  # the next round tells it again

    def lost(self) -> list[VolumeRecord]:
        """Return the volumes that are to be unmounted: no writer of theirs is left."""
        before_s = clock.monotonic_s() - _LOST_GRACE_S
        with self._lock:
            return [
                each.record for each in self._held.values() if each.lost_s <= before_s
            ]

    def held(self) -> list[tuple[VolumeRecord, int]]:
        """Return the volumes that are mounted, with their epochs."""
        return [(each.record, each.epoch) for each in self._holdings() if each.target]

    def stop_writers(self, record: VolumeRecord) -> bool:
        """
        Return whether no process of this node can write to the volume any more.

        They are killed: another node is about to own it.
        """
        with self._lock:
            holding = self._held.get(record.id)
        if holding is None:
            return not self._ownership.has_users(record)
        if holding.fence == "none":
            return False
        deadline = clock.Deadline(_KILL_DEADLINE_S)
        try:
            while not self._killed([holding]):
                if deadline.passed():
                    return False
                clock.pause(_KILL_PAUSE_S)
        except FencingError as error:
            log.warning("%s", error)
            return False
        with self._lock:
            now = self._held.get(record.id)
        return now is holding or (now is None and not self._ownership.has_users(record))

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
        pause_s = self._failsafe.pause_s()
        return min(round_s, pause_s if pause_s > 0 else left_s)

    def _take_over(self) -> None:
        """Hold what was left mounted; raises StoreError while nobody knows that."""
        left_mounted = self._left_mounted
        if left_mounted is None:
            return
        for volume_id, (record, target) in left_mounted().items():
            # Its lock may have gone with the lease; the first round finds that out.
            holding = Holding(record, 0, target)
            with suppress(RemoraError):
                self._still_ours(holding)
            with self._lock:
                self._held.setdefault(volume_id, holding)
        self._left_mounted = None

    def _round(self) -> None:
        """Do what is due; nothing here waits for one volume, for all have deadlines."""
        try:
            self._take_over()
        except StoreError:
            return  # the guard acts on what it knows; the mirror says what is wrong
        self._left_copies.learn(self._holdings())
        self._failsafe.extend(self._holdings())
        # A guard that does not answer must not keep locks from being taken again.
        with suppress(RemoraError):
            self._tell_guard()
        lost, unlocked = [], []
        for holding in self._holdings():
            try:
                if not self._still_ours(holding):
                    lost.append(holding)
                elif not self._locked(holding):
                    unlocked.append(holding)
            except RemoraError as error:
                log.warning("%s", error, extra=fields(volume=holding.record.name))
        for at in range(0, len(unlocked), TOGETHER_MAX):
            if not self._regain(unlocked[at : at + TOGETHER_MAX]):
                break  # the others would wait for the store as long
            with suppress(RemoraError):
                self._tell_guard()
        self._tell_guard()
        self._lose(lost)

    def _holdings(self) -> list[Holding]:
        with self._lock:
            return list(self._held.values())

    def _still_ours(self, holding: Holding) -> bool:
        """
        Return whether its epoch goes on; one that is unknown is read first.

        Of a head that cannot be read, the lock tells as much.
        """
        try:
            if not holding.epoch:
                head = self._ownership.heads.read(holding.record.id).head
                holding.epoch = head.epoch if head else 0
            return self._ownership.still_owner(holding.record, holding.epoch)
        except StoreError:
            if self._locked(holding):
                return True
            raise

    def _locked(self, holding: Holding) -> bool:
        """Return whether the volume's lock hangs on the lease that we have."""
        return self._ownership.holds_lock(holding.record, holding.epoch)

    def _regain(self, holdings: Sequence[Holding]) -> bool:
        """
        Write locks again where no other node has come; return whether that was done.

        Without a lease it is not.
        """
        if not self._ownership.membership.lease:
            return False
        try:
            volumes = [(each.record, each.epoch) for each in holdings]
            resume_all(self._ownership, volumes)
        except RemoraError as error:
            names = ", ".join(each.record.name for each in holdings[:3])
            log.info("not regained yet: %s", error, extra=fields(volumes=names))
            return False
        return True

    def _lose(self, lost: Sequence[Holding]) -> None:
        """
        End what still wants to write to *lost* volumes: other nodes own them.

        A container that is just starting is ended as well: the guard looks for writers
        until the volume is unmounted.
        """
        for each in lost:
            self._mark(each, valid=False)
        dying = [
            each
            for each in lost
            if each.target and each.fence != "none" and each.lost_s == math.inf
        ]
        killed = self._killed(dying)
        # The guard goes on with the others; it is asked again soon.
        self._dying = len(killed) < len(dying)
        for each in killed:
            each.lost_s = clock.monotonic_s()
            log.warning(
                "another node owns it: its writers are ended",
                extra=fields(volume=each.record.name),
            )
            self._ownership.events.add(each.record, "writers-killed", epoch=each.epoch)

    def _killed(self, holdings: Sequence[Holding]) -> list[Holding]:
        """
        Have the guard kill the volumes' writers; return where none is left.

        Those of a later mount are spared: the guard hears of none while it is our turn.
        One request is for all, because each looks at all processes of the machine.
        """
        with self._turn:
            with self._lock:  # what was unmounted meanwhile has no writers
                left = set(holdings).intersection(self._held.values())
            ids = {each.record.id for each in left}
            states = self._guard.kill(ids) if ids else {}
        gone = ("killed", None)
        return [
            each
            for each in holdings
            if each.record.id not in ids or states.get(each.record.id) in gone
        ]

    def _tell_guard(self) -> None:
        """Tell the guard all deadlines; log what has become valid or invalid."""
        with self._turn:
            self._take_over()
            told = []
            table = mounts.mounted()
            for holding in self._holdings():
                deadline_s = self._deadline_s(holding)
                if deadline_s is not None:
                    self._mark(holding, valid=deadline_s > clock.boottime_s())
                entry = table.get(str(holding.target))
                if entry is not None:
                    shared = self._ownership.is_shared(holding.record)
                    told.append(
                        holding.as_held(
                            entry,
                            deadline_s,
                            freeze_max_s=self._freeze_max_s,
                            shared=shared,
                        )
                    )
            self._guard.hold(told)

    def _deadline_s(self, holding: Holding) -> float | None:
        """
        Return until when writers of the volume may write; never after a loss.

        None while nobody knows: the guard goes on with what it, or an earlier process,
        has told it.
        """
        record = holding.record
        try:
            if not self._still_ours(holding):
                return -math.inf
            locked = self._locked(holding)
        except RemoraError as error:
            log.warning("%s", error, extra=fields(volume=record.name))
            return None
        lease_s = self._ownership.membership.deadline_s() if locked else -math.inf
        return max(lease_s, self._failsafe.deadline_s(record.id))

    def _mark(self, holding: Holding, *, valid: bool) -> None:
        """Log the moment at which a volume's time ends, or goes on."""
        with self._lock:
            if valid == holding.valid:
                return
            holding.valid = valid
        event = "regained" if valid else "lost"
        self._ownership.note(event, holding.record, holding.epoch)
