"""
What is done in the background, at start and every few seconds after.

- records are brought in step with shared storage;
- creations that nobody was told of are rolled back, removals that were begun finished;
- volumes that only inherited references hold are unmounted once proven unused;
- mounts that no reference holds (their last unmount failed) are unmounted;
- volumes that this node owns and does not use are released; copies of those that
  other nodes have removed go, and those of volumes that it is no member of any more;
- the trash is emptied.

Each volume is handled under its own lock and each failure is logged and left for the
next pass; a pass never waits for a volume that is busy.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from backends.errors import RemoraError, VolumeBusyError
from backends.system.clock import Deadline
from backends.system.mounts import mounted_at
from plugin.limits import GARBAGE_DEADLINE_S, SHORT_DEADLINE_S
from plugin.logs import fields
from plugin.model import VolumeRecord
from plugin.ownership.tombs import bury_copies
from plugin.volumes.catalogue import Stored
from plugin.volumes.service import VolumeService

log = logging.getLogger(__name__)
# A volume whose lock is not free at once has somebody working on it.
_LOCK_WAIT_S: Final = 0.05
_STOP_WAIT_S: Final = 2.0


class Reconciler:
    """Runs passes in one background thread until it is stopped."""

    def __init__(
        self,
        service: VolumeService,
        *,
        interval_s: float,
        also: Sequence[Callable[[], None]] = (),
    ) -> None:
        """Let each pass do *also* what others have to repair."""
        self._service = service
        self._interval_s = interval_s
        self._also = also
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name="reconciler", daemon=True
        )

    def start(self) -> None:
        """Begin with a first pass at once."""
        self._thread.start()

    def stop(self) -> None:
        """End after the volume that a pass under way is at; wait a little for it."""
        self._stopping.set()
        self._thread.join(_STOP_WAIT_S)

    def run_once(self) -> None:
        """Do one pass."""
        service = self._service
        service.discovery.synchronise()
        for records, action in (
            (self._unfinished, self._finish),
            (self._held_or_mounted, self._settle),
            (self._owned, self._let_go),
            (self._departed, self._depart),
        ):
            for record in records():
                if self._stopping.is_set():
                    return
                self._attempt(record, action)
        bury_copies(service.ownership, service.registry)
        for mend in self._also:
            mend()
        self._collect_garbage()

    def _collect_garbage(self) -> None:
        for backend in self._service.registry.all().values():
            try:
                freed = backend.collect_garbage(deadline_s=GARBAGE_DEADLINE_S)
            except RemoraError as error:
                log.warning("the trash of '%s' stays: %s", backend.kind, error)
            else:
                if freed:
                    log.info("trash emptied", extra=fields(volumes=freed))

    def release_forgotten(self) -> list[str]:
        """
        Return the volumes that were unmounted because nobody uses them.

        This is the administrator's order (`remora repair`): it takes even live
        references, which the engine may have lost without a restart.
        """
        return [
            record.name
            for record in self._held_or_mounted()
            if self._attempt(record, self._release)
        ]

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.run_once()
            except RemoraError as error:
                log.warning("reconciliation stopped early: %s", error)
            except Exception:
                log.exception("reconciliation failed")
            self._stopping.wait(self._interval_s)

    def _unfinished(self) -> Iterable[VolumeRecord]:
        """Return the volumes whose making or removing this node has begun."""
        return [
            each
            for each in self._service.catalogue.all()
            if each.phase != "ready" and self._service.is_ours_to_finish(each)
        ]

    def _held_or_mounted(self) -> Iterable[VolumeRecord]:
        """Return the volumes with references or with a mount point's directory."""
        ids = set(self._service.references.volumes())
        ids.update(each.name for each in self._service.mount_dir.iterdir())
        if not ids:
            return []
        return [each for each in self._service.catalogue.all() if each.id in ids]

    def _owned(self) -> Iterable[VolumeRecord]:
        """Return the volumes that this node owns, as the cluster knows."""
        ownership = self._service.ownership
        ids = {*ownership.heads.owned_by(ownership.node_id)}
        if not ids:
            return []
        return [each for each in self._service.catalogue.all() if each.id in ids]

    def _departed(self) -> Iterable[VolumeRecord]:
        """Return the volumes of which this node has a copy and is no member."""
        if self._service.ownership.membership.fault():
            return []  # what the cluster says now would have to be waited for
        has_departed = self._service.ownership.has_departed
        return [each for each in self._service.catalogue.all() if has_departed(each)]

    def _attempt(
        self, record: VolumeRecord, action: Callable[[Stored, Deadline], None]
    ) -> bool:
        """Do *action* on the volume if it is free; return whether it was done."""
        locks = self._service.operations.locks
        try:
            with locks.hold(record.name, Deadline(_LOCK_WAIT_S)):
                stored = self._service.catalogue.find(record.name)
                if stored is None or stored.record.id != record.id:
                    return False
                action(stored, Deadline(SHORT_DEADLINE_S))
        except VolumeBusyError:
            return False
        except RemoraError as error:
            log.warning(
                "reconciliation will be repeated: %s",
                error,
                extra=fields(volume=record.name, code=error.code),
            )
            return False
        return True

    def _finish(self, stored: Stored, deadline: Deadline) -> None:
        if stored.record.phase == "creating":
            self._service.roll_back_creation(stored, deadline)
        elif stored.record.phase == "removing":
            self._service.require_unused(stored.record)
            self._service.finish_removal(stored, deadline)
        log.info(
            "finished what a crash left",
            extra=fields(volume=stored.record.name, phase=stored.record.phase),
        )

    def _let_go(self, stored: Stored, deadline: Deadline) -> None:
        """Release a volume that nothing of this node uses: a crash has left it ours."""
        del deadline
        if self._is_idle(stored.record):
            self._service.let_go(stored.record)

    def _depart(self, stored: Stored, deadline: Deadline) -> None:
        """Let the copy of a volume go that other nodes keep the copies of now."""
        if self._is_idle(stored.record):
            self._service.ownership.replication.depart(stored.record, deadline)

    def _is_idle(self, record: VolumeRecord) -> bool:
        return mounted_at(self._service.target(record)) is None and not (
            self._service.references.total(record.id)
        )

    def _settle(self, stored: Stored, deadline: Deadline) -> None:
        self._service.settle(stored.record, deadline)

    def _release(self, stored: Stored, deadline: Deadline) -> None:
        self._service.require_unheld(stored.record)
        self._service.drop_mount(stored.record, deadline)
