"""
Filling members that have no copy yet: with the files as they are, beside the rounds.

It may take hours, in which the other members get their commits as ever. These files
count for nothing by themselves: the commit that follows names all of them, and brings
what has changed since. One member of a volume is filled at a time, so that there is a
second copy soon; a member that already has a copy sends the files, if there is one.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from backends.errors import RemoraError
from backends.rsync.journal.entries import Commit
from backends.rsync.journal.journal import Journal
from backends.system.aside import begun
from plugin.logs import fields
from plugin.model import VolumeRecord
from plugin.peers.channel import Peers
from plugin.replication.at_work import Patience
from plugin.replication.handing import TRANSFER_DEADLINE_S, AheadRequest, carried_bytes
from plugin.replication.transfer import RsyncTransfer

log = logging.getLogger(__name__)
_AT_ONCE_MAX: Final = 4


class Filling:
    """One member's filling, with files as they were at commit *since*, or later."""

    def __init__(self, node_id: str, since: Commit) -> None:
        self.node_id = node_id
        self.since = since
        self.carried_bytes = 0
        self.error: RemoraError | None = None
        self.work: Future[None] = Future()
        # Whether `Seeding.fill` has returned it.
        self.told = False

    def end(self, work: Future[None]) -> None:
        """Note why it has failed, if it could not begin."""
        error = work.exception()
        if isinstance(error, RemoraError):
            self.error = error


class Seeding:
    """Fills members, one of each volume at a time; threads share it."""

    def __init__(self, peers: Peers, transfer: RsyncTransfer) -> None:
        self._peers = peers
        self._transfer = transfer
        self._lock = threading.Lock()
        # By the volume's id; a filling that is done stays until its commit has come.
        self._fillings: dict[str, Filling] = {}

    def fill(
        self,
        record: VolumeRecord,
        journal: Journal,
        node_id: str,
        *,
        holder: str,
        wait_s: float,
    ) -> Filling | None:
        """
        Return the filling of *node_id* that is done, None if it is not within *wait_s*.

        Then it goes on, or it begins after another one. *holder* is a member with a
        copy, "" if there is none.

        Raises:
            RemoraError: the filling has failed so; the next call begins anew.

        """
        filling = self._under_way(record, journal, node_id, holder)
        if filling is None:
            return None
        if not wait([filling.work], wait_s).done:
            return None
        if filling.error is not None:
            self.forget(record.id)
            raise filling.error
        filling.told = True
        return filling

    def is_due(self, volume_id: str) -> bool:
        """Return whether a member is filled, and `fill` has not said so yet."""
        with self._lock:
            filling = self._fillings.get(volume_id)
        return (
            filling is not None
            and filling.work.done()
            and not filling.told
            and filling.error is None
        )

    def is_under_way(self, volume_id: str) -> bool:
        """Return whether a member of the volume is being filled."""
        with self._lock:
            filling = self._fillings.get(volume_id)
        return filling is not None and not filling.work.done()

    def forget(self, volume_id: str) -> None:
        """Forget the filling: the member has its commit, or the filling failed."""
        with self._lock:
            self._fillings.pop(volume_id, None)

    def _under_way(
        self, record: VolumeRecord, journal: Journal, node_id: str, holder: str
    ) -> Filling | None:
        """Return the filling of *node_id*, maybe begun now; None if it has to wait."""
        with self._lock:
            known = self._fillings.get(record.id)
            if known is not None and not known.work.done():
                return known if known.node_id == node_id else None
            # A done filling is of use only if the journal knows all changes since.
            if (
                known is not None
                and known.node_id == node_id
                and journal.manifest.since(known.since) is not None
            ):
                return known
            alive = [each for each in self._fillings.values() if not each.work.done()]
            if len(alive) >= _AT_ONCE_MAX:
                return None
            filling = Filling(node_id, journal.commit())
            about = filling, record, journal.live, journal.manifest.size_bytes(), holder
            filling.work = begun(partial(self._run, *about), name="seeding")
            filling.work.add_done_callback(filling.end)
            self._fillings[record.id] = filling
            return filling

    def _run(
        self,
        filling: Filling,
        record: VolumeRecord,
        source: Path,
        total_bytes: int,
        holder: str,
    ) -> None:
        try:
            carried = self._by(holder, record, filling) if holder else None
            if carried is None:
                carried = self._transfer.send_ahead(
                    filling.node_id,
                    volume_id=record.id,
                    epoch=filling.since[0],
                    source=source,
                    total_bytes=total_bytes,
                )
            filling.carried_bytes = carried
        except RemoraError as error:
            filling.error = error
        except Exception:
            log.exception("a member was not filled", extra=fields(volume=record.name))
            filling.error = RemoraError("a fault in the daemon; see its log")

    def _by(self, holder: str, record: VolumeRecord, filling: Filling) -> int | None:
        """Let *holder* send its files; return the bytes on the line, or None."""
        request = AheadRequest(
            record.id, record.name, filling.since[0], filling.node_id
        )
        try:
            answer = self._peers.call(
                holder,
                "ahead",
                msgspec.to_builtins(request),
                deadline_s=TRANSFER_DEADLINE_S,
                patient=Patience(self._peers, holder, record.id),
            )
        except RemoraError as error:
            log.info(
                "a member brings no files to another: %s",
                error,
                extra=fields(volume=record.name, node=holder, target=filling.node_id),
            )
            return None
        return carried_bytes(answer)
