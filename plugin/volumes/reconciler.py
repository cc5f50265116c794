"""
What is done in the background, at start and every few seconds after.

- records are brought in step with shared storage;
- creations that nobody was told of are rolled back, and begun removals are finished;
- volumes that only inherited references hold are unmounted once proven unused;
- mounts that no reference holds (their last unmount failed) are unmounted;
- so are volumes that another node has taken, once their writers are dead;
- volumes that this node owns and does not use are released;
- copies are held to the size that their volumes have now;
- copies are removed if their volume was removed, or this node is no member any more;
- the trash is emptied.

Each piece of work, and of it each volume, is a chore of its own, under the volume's
lock: what fails, hangs or is busy is left for a later pass, and the others go on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from backends.base import Backend
from backends.errors import BackendError, RemoraError
from backends.system import mounts
from backends.system.clock import Deadline
from plugin.limits import GARBAGE_DEADLINE_S, SHORT_DEADLINE_S
from plugin.logs import fields
from plugin.model import VolumeRecord
from plugin.ownership.state import Tomb
from plugin.ownership.tombs import bury_copies
from plugin.replication.departing import Departing
from plugin.volumes.catalogue import Catalogue, Stored
from plugin.volumes.chores import Chores
from plugin.volumes.discovery import Discovery
from plugin.volumes.removal import Removal
from plugin.volumes.sizes import Sizes
from plugin.volumes.unmounting import Unmounting
from plugin.volumes.views import VolumeViews

log = logging.getLogger(__name__)
# If a volume's lock is not free at once, an operation is at work on the volume.
_LOCK_WAIT_S: Final = 0.05
_STOP_WAIT_S: Final = 2.0
# A chore that takes longer goes on alone. With so many of them, storage is in trouble.
_PATIENCE_S: Final = 2.0
_CHORES_MAX: Final = 32

Records = Sequence[VolumeRecord]
Action = Callable[[Stored, Deadline], None]


class Reconciler:
    """Runs passes in one background thread until it is stopped."""

    def __init__(  # noqa: PLR0913 - the composition root names each of them
        self,
        catalogue: Catalogue,
        discovery: Discovery,
        views: VolumeViews,
        unmounting: Unmounting,
        removal: Removal,
        departing: Departing | None,
        sizes: Sizes,
        *,
        interval_s: float,
        also: Mapping[str, Callable[[], None]],
    ) -> None:
        """Let each pass do *also* what others have to repair."""
        self._catalogue = catalogue
        self._discovery = discovery
        self._views = views
        self._unmounting = unmounting
        self._removal = removal
        self._departing = departing
        self._sizes = sizes
        self._ownership = unmounting.ownership
        self._locks = unmounting.operations.locks
        self._interval_s = interval_s
        self._also = also
        self._chores = Chores(threads_max=_CHORES_MAX)
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name="reconciler", daemon=True
        )

    def start(self) -> None:
        """Begin with a first pass at once."""
        self._thread.start()

    def stop(self) -> None:
        """End after the volume that a pass is just at; wait a little for that."""
        self._stopping.set()
        self._thread.join(_STOP_WAIT_S)

    def run_once(self, *, patience_s: float = _PATIENCE_S) -> None:
        """Do one pass, waiting for each chore at most *patience_s*."""
        run = partial(self._chores.run, patience_s=patience_s)
        run("the look at storage", self._discovery.synchronise)
        for verb, records, action in self._actions():
            for record in run(f"the list of what to {verb}", records) or ():
                if self._stopping.is_set():
                    return
                run(f"{verb} '{record.name}'", partial(self._attempt, record, action))
        let_go, keep_unknown = self._unmounting.unmount_removed, self._keep_unknown
        bury = partial(bury_copies, self._ownership, let_go, keep_unknown)
        run("the burial of copies", bury)
        for name, mend in self._also.items():
            run(name, mend)
        for kind, backend in self._ownership.registry.all().items():
            run(f"the emptying of the trash of '{kind}'", partial(_empty, backend))

    def _actions(self) -> Iterable[tuple[str, Callable[[], Records], Action]]:
        """Return what is done with volumes: a verb, the volumes, the action on each."""
        return (
            ("finish", self._unfinished, self._finish),
            ("unmount", self._views.held_or_mounted, self._unmount_if_unused),
            ("give up", self._lost, self._unmount_lost),
            ("release", self._owned, self._let_go),
            ("limit", self._sizes.limited, self._fit),
            ("remove the copy of", self._departed, self._depart),
        )

    def release_forgotten(self) -> list[str]:
        """
        Return the volumes that were unmounted because nobody uses them.

        This is the administrator's order (`remora repair`): it takes even live
        references, which the engine may have lost without a restart.
        """
        return [
            record.name
            for record in self._views.held_or_mounted()
            if self._chores.run(
                f"unmount '{record.name}'",
                partial(self._attempt, record, self._release),
                patience_s=SHORT_DEADLINE_S,
            )
        ]

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.run_once()
            self._stopping.wait(self._interval_s)

    def _unfinished(self) -> Records:
        """Return the volumes whose making or removing this node has begun."""
        ids = {each.id for each in self._catalogue.heads() if each.phase != "ready"}
        is_ours = self._ownership.is_ours_to_finish
        return [each for each in self._catalogue.of_ids(ids) if is_ours(each)]

    def _lost(self) -> Records:
        """Return the volumes that other nodes have taken and whose writers are dead."""
        keeper = self._unmounting.keeper
        return keeper.lost() if keeper is not None else []

    def _owned(self) -> Records:
        """Return the volumes that this node owns, as the cluster knows, unmounted."""
        ids = self._ownership.heads.owned_by(self._ownership.node_id)
        mounted, target = mounts.mounted(), self._views.target
        return [
            each
            for each in self._catalogue.of_ids(ids)
            if str(target(each)) not in mounted
        ]

    def _departed(self) -> Records:
        """Return the volumes of which this node has a copy but is no member."""
        if self._ownership.membership.fault():
            return []  # `depart` would wait for the cluster, which does not answer
        try:
            spare = self._ownership.spare_copies()
        except BackendError:
            return []  # nothing goes from a pool that is not there
        found = []
        for each in self._catalogue.of_ids(spare):
            with suppress(RemoraError, OSError):  # what cannot be seen stays
                if self._ownership.has_departed(each):
                    found.append(each)
        return found

    def _fit(self, stored: Stored, deadline: Deadline) -> None:
        self._sizes.hold_now(stored.record, deadline)

    def _attempt(self, record: VolumeRecord, action: Action) -> bool:
        """Do *action* on the volume if it is free; return whether it was done."""
        with self._locks.hold(record.name, Deadline(_LOCK_WAIT_S)):
            stored = self._catalogue.find(record.name)
            if stored is None or stored.record.id != record.id:
                return False
            action(stored, Deadline(SHORT_DEADLINE_S))
        return True

    def _finish(self, stored: Stored, deadline: Deadline) -> None:
        if stored.record.phase == "creating":
            self._removal.roll_back_creation(stored, deadline)
        elif stored.record.phase == "removing":
            self._removal.finish_begun(stored, deadline)
        log.info(
            "finished what a crash left",
            extra=fields(volume=stored.record.name, phase=stored.record.phase),
        )

    def _let_go(self, stored: Stored, deadline: Deadline) -> None:
        """Release a volume that nothing here uses: after a crash it was still ours."""
        del deadline
        if self._unmounting.is_idle(stored.record):
            self._unmounting.let_go(stored.record)

    def _depart(self, stored: Stored, deadline: Deadline) -> None:
        """Remove our copy of a volume of which this node is no member any more."""
        if self._departing is not None and self._unmounting.is_idle(stored.record):
            self._departing.depart(stored.record, deadline)

    def _keep_unknown(self, record: VolumeRecord, tomb: Tomb) -> None:
        """Set apart what was written here to a volume that was removed elsewhere."""
        if self._departing is not None:
            self._departing.keep_unknown(record, tomb)

    def _unmount_if_unused(self, stored: Stored, deadline: Deadline) -> None:
        self._unmounting.unmount_if_unused(stored.record, deadline)

    def _unmount_lost(self, stored: Stored, deadline: Deadline) -> None:
        self._unmounting.unmount_lost(stored.record, deadline)

    def _release(self, stored: Stored, deadline: Deadline) -> None:
        self._unmounting.require_unheld(stored.record)
        self._unmounting.drop_mount(stored.record, deadline)


def _empty(backend: Backend) -> None:
    freed = backend.collect_garbage(deadline_s=GARBAGE_DEADLINE_S)
    if freed:
        log.info("trash emptied", extra=fields(volumes=freed))
