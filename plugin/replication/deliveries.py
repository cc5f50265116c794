"""
Commits on their way to members: a round waits for each for some seconds only.

What takes longer goes on beside the rounds, as fillings do. Its member is left out of
them until it ends, and keeps nothing from the others. A node that was slow is waited
for only shortly, until it has been quick again; one that has too much on its way gets
no more.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, wait
from typing import Any, Final

from backends.errors import RemoraError
from backends.rsync.journal.entries import Commit as Base
from backends.system.aside import begun
from backends.system.clock import Deadline, monotonic_s
from plugin.model import VolumeRecord
from plugin.replication.at_work import Workers
from plugin.replication.landing import Landing
from plugin.replication.report import Report

log = logging.getLogger(__name__)
_PATIENCE_S: Final = 4.0
_PATIENCE_SLOW_S: Final = 0.5
# Each has a thread, an rsync and the copies that are sent.
_LATE_MAX: Final = 16


class Delivery:
    """
    The commit of *report* on its way to a member, at *base* or None; *send* brings it.

    Files were sent that have changed after *since*, and what the member lacked then.
    It may have to wait in *landing* for others that are on their way, too.

    When it has ended, ``answer`` is what the member says, or ``error`` is set.
    """

    def __init__(  # noqa: PLR0913 - what is sent, to whom, and how far it is
        self,
        record: VolumeRecord,
        node_id: str,
        report: Report,
        *,
        base: Base | None,
        since: Base,
        filled: bool,
        send: Callable[[], Mapping[str, Any]],
        landing: Landing | None = None,
    ) -> None:
        self.volume_id = record.id
        self.node_id = node_id
        self.report = report
        self.commit = report.commit
        self.base = base
        self.since = since
        self.filled = filled
        self.answer: Mapping[str, Any] = {}
        self.error: RemoraError | None = None
        # Whether a round has begun since it ended.
        self.told = False
        self.landing = landing or Landing([record.id])
        self._send = send
        self.took_s = self.ended_s = 0.0
        self._workers = Workers()
        self._work: Future[None] | None = None

    def start(self, workers: Workers) -> None:
        """Begin; *workers* count it, for who waits until it has ended."""
        self._workers = workers
        self._work = begun(self._run, name="delivery")
        error = self._work.exception() if self._work.done() else None
        if isinstance(error, RemoraError):  # it could not begin
            self.error = error

    def wait(self, deadline: Deadline | None = None) -> bool:
        """Return whether it has ended before *deadline*; what hangs is given up."""
        if self._work is not None:
            wait([self._work], deadline.remaining_s() if deadline else None)
        return self.has_ended()

    def waits(self) -> bool:
        """Return whether nothing is done at the moment but waiting for others."""
        return self.landing.is_waiting(self.volume_id, self.node_id)

    def when_ended(self, callback: Callable[[], None]) -> None:
        """Call *callback* as soon as it has ended, in its thread."""
        if self._work is not None:
            self._work.add_done_callback(lambda _: callback())

    def has_ended(self) -> bool:
        """Return whether it has."""
        return self._work is None or self._work.done()

    def _run(self) -> None:
        began_s = monotonic_s()
        try:
            with self._workers.working(self.volume_id):
                self.answer = self._send()
        except RemoraError as error:
            self.error = error
        except Exception:
            log.exception("a commit was not sent")
            self.error = RemoraError("a fault in the daemon; see its log")
        finally:
            self.ended_s = monotonic_s()
            self.took_s = self.ended_s - began_s


class Deliveries:
    """See the module's text; threads share it."""

    def __init__(self) -> None:
        self.workers = Workers()
        self._lock = threading.Lock()
        # One of each volume and node, until a round has taken it out.
        self._late: list[Delivery] = []
        self._slow: set[str] = set()

    def deliver(
        self,
        deliveries: Sequence[Delivery],
        meanwhile: Callable[[], None] = lambda: None,
    ) -> list[Delivery]:
        """Begin *deliveries*; return those that go on beside the round."""
        with self._lock:
            slow = frozenset(self._slow)
        for each in deliveries:
            each.start(self.workers)
        usual, short = Deadline(_PATIENCE_S), Deadline(_PATIENCE_SLOW_S)
        meanwhile()
        late = [
            each
            for each in deliveries
            if not each.wait(short if each.node_id in slow else usual)
        ]
        with self._lock:
            self._late += late
            self._slow -= {each.node_id for each in deliveries if not each.error}
            # That a volume of a group waits for another says nothing of the node.
            self._slow |= {each.node_id for each in late if not each.waits()}
        return late

    def after(self, late: Sequence[Delivery], clear: Callable[[], None]) -> None:
        """Call *clear* when all that is *late* has ended."""
        left = len(late)

        def ended() -> None:
            nonlocal left
            with self._lock:
                left -= 1
                if left:
                    return
            try:
                clear()
            except RemoraError as error:
                log.warning("%s", error)

        for each in late:
            each.when_ended(ended)

    def busy(self, volume_id: str, node_ids: Collection[str]) -> dict[str, str]:
        """Return to which of *node_ids* nothing can be sent now, and why."""
        with self._lock:
            under_way = [each for each in self._late if not each.has_ended()]
        nodes = [each.node_id for each in under_way if not each.waits()]
        own = {each.node_id for each in under_way if each.volume_id == volume_id}
        busy = {
            each: f"{_LATE_MAX} other volumes are on their way to it"
            for each in node_ids
            if nodes.count(each) >= _LATE_MAX
        }
        return busy | {each: "" for each in node_ids if each in own}

    def take_ended(self, volume_id: str) -> list[Delivery]:
        """Return what has ended beside the rounds of a volume, and forget it."""
        with self._lock:
            ended = [
                each
                for each in self._late
                if each.volume_id == volume_id and each.has_ended()
            ]
            self._late = [each for each in self._late if each not in ended]
            quick = (each for each in ended if each.took_s < _PATIENCE_S)
            self._slow -= {each.node_id for each in quick if not each.error}
        return ended

    def wait(self, volume_id: str, node_id: str, deadline: Deadline) -> bool:
        """Return whether nothing of a volume is on its way to the node any more."""
        with self._lock:
            late = [each for each in self._late if each.volume_id == volume_id]
        return all(each.wait(deadline) for each in late if each.node_id == node_id)

    def hurry(self, volume_id: str) -> None:
        """Have what is on its way of a volume wait for no other volume."""
        with self._lock:
            own = [each for each in self._late if each.volume_id == volume_id]
        for each in own:
            each.landing.hurry(volume_id)

    def begin_round(self, volume_id: str) -> None:
        """Note that what has ended by now is no cause for another round."""
        with self._lock:
            for each in self._late:
                each.told |= each.volume_id == volume_id and each.has_ended()

    def is_due(self, volume_id: str) -> bool:
        """Return whether something has ended since the last round began."""
        with self._lock:
            own = [each for each in self._late if each.volume_id == volume_id]
        return any(each.has_ended() and not each.told for each in own)

    def keep_only(self, volume_ids: Collection[str], *, since_s: float) -> None:
        """Forget what ended before *since_s*, but that of volumes that have rounds."""
        with self._lock:
            self._late = [
                each
                for each in self._late
                if not each.has_ended()
                or each.volume_id in volume_ids
                or each.ended_s >= since_s
            ]

    def is_under_way(self, volume_id: str) -> bool:
        """Return whether something of a volume goes on beside its rounds."""
        with self._lock:
            own = [each for each in self._late if each.volume_id == volume_id]
        return any(not each.has_ended() for each in own)
