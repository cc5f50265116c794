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
from collections import Counter
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from backends.errors import BackendError, RemoraError
from backends.rsync.journal.entries import Commit
from backends.rsync.journal.journal import Journal
from backends.system import files
from backends.system.clock import monotonic_s
from plugin.logs import fields
from plugin.model import VolumeRecord
from plugin.peers.channel import Peers
from plugin.replication.at_work import Patience
from plugin.replication.handing import TRANSFER_DEADLINE_S, AheadRequest
from plugin.replication.transfer import RsyncTransfer

log = logging.getLogger(__name__)
# So many may begin until they have turned out to take long, and so many go to one node.
_SHORT_MAX: Final = 4
_NODE_MAX: Final = 8
_LONG_AFTER_S: Final = 5.0
# A member of a small volume is filled and has its commit in one round.
_WAIT_S: Final = 2.0


class Filling:
    """
    One member's filling, with files as they were at commit *since*, or later.

    It waits for its turn until `begin`. *holder* is who brings them, "" for this node.
    """

    def __init__(
        self, node_id: str, since: Commit, holder: str, run: Callable[[Filling], None]
    ) -> None:
        self.node_id = node_id
        self.since = since
        self.holder = holder
        self.carried_bytes = 0
        self.error: RemoraError | None = None
        # Whether a round has begun since it ended, or `Seeding.fill` has returned it.
        self.told = False
        self.began_s: float | None = None
        self.ended_s = 0.0
        self.ended = threading.Event()
        self._thread = threading.Thread(
            target=run, args=(self,), name="seeding", daemon=True
        )

    def begin(self) -> None:
        """Begin, or raise RuntimeError: there is no thread left."""
        self._thread.start()
        self.began_s = monotonic_s()

    def is_under_way(self) -> bool:
        """Return whether it has begun and not ended."""
        return self.began_s is not None and not self.ended.is_set()


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
    ) -> Filling | None:
        """
        Return the filling of *node_id* that is done, None if it is not soon.

        Then it goes on, or it begins after another one. *holder* is a member with a
        copy, "" if there is none.

        Raises:
            RemoraError: the filling has failed so; the next call begins anew.

        """
        filling = self._under_way(record, journal, node_id, holder)
        if filling is None:
            return None
        if not filling.ended.wait(_WAIT_S if filling.is_under_way() else 0.0):
            return None
        if filling.error is not None:
            self.forget(record.id)
            raise filling.error
        filling.told = True
        return filling

    def begin_round(self, volume_id: str) -> None:
        """Note that a filling that has ended by now is no cause for another round."""
        with self._lock:
            filling = self._fillings.get(volume_id)
            if filling is not None and filling.ended.is_set():
                filling.told = True

    def is_due(self, volume_id: str) -> bool:
        """Return whether a filling has ended well since the last round began."""
        with self._lock:
            filling = self._fillings.get(volume_id)
        return (
            filling is not None
            and filling.ended.is_set()
            and not filling.told
            and filling.error is None
        )

    def is_under_way(self, volume_id: str) -> bool:
        """Return whether a member of the volume is being filled."""
        with self._lock:
            filling = self._fillings.get(volume_id)
        return filling is not None and filling.is_under_way()

    def begin_due(self) -> None:
        """
        Begin what waits longest; called often.

        A filling that takes long gives its place to the next one, but to one node there
        are no more than a few: a slow line keeps nothing from other nodes.
        """
        with self._lock:
            waiting = [e for e in self._fillings.values() if e.began_s is None]
            under_way = [e for e in self._fillings.values() if e.is_under_way()]
            to_node = Counter(each.node_id for each in under_way)
            long_since_s = monotonic_s() - _LONG_AFTER_S
            short = sum((each.began_s or 0.0) > long_since_s for each in under_way)
            for each in waiting:
                if short >= _SHORT_MAX or to_node[each.node_id] >= _NODE_MAX:
                    continue
                try:
                    each.begin()
                except RuntimeError as error:  # its turn comes again
                    log.warning("no filling can begin: %s", error)
                    return
                short += 1
                to_node[each.node_id] += 1

    def keep_only(self, volume_ids: Collection[str], *, since_s: float) -> None:
        """Forget what ended before *since_s*, but that of volumes that have rounds."""
        with self._lock:
            self._fillings = {
                key: each
                for key, each in self._fillings.items()
                if not each.ended.is_set()
                or key in volume_ids
                or each.ended_s >= since_s
            }

    def forget(self, volume_id: str) -> None:
        """Forget the filling: the member has its commit, or the filling failed."""
        with self._lock:
            self._fillings.pop(volume_id, None)

    def _under_way(
        self, record: VolumeRecord, journal: Journal, node_id: str, holder: str
    ) -> Filling | None:
        """Return the filling of *node_id*, maybe new; None if it is after another's."""
        with self._lock:
            known = self._fillings.get(record.id)
            if known is not None and not known.ended.is_set():
                if known.node_id != node_id:
                    return None
                if known.began_s is None:  # what changes until it begins, it brings
                    known.since, known.holder = journal.commit(), holder
            # A done filling is of use only if the journal knows all changes since.
            elif (
                known is None
                or known.node_id != node_id
                or journal.manifest.since(known.since) is None
            ):
                source, size_bytes = journal.live, journal.used_bytes()
                run = partial(self._run, record, source, size_bytes)
                # At the end: who waits longest is the first.
                self._fillings.pop(record.id, None)
                known = Filling(node_id, journal.commit(), holder, run)
                self._fillings[record.id] = known
        self.begin_due()
        return known

    def _run(
        self, record: VolumeRecord, source: Path, total_bytes: int, filling: Filling
    ) -> None:
        try:
            filling.carried_bytes = self._send(record, source, total_bytes, filling)
        except RemoraError as error:
            filling.error = error
        except OSError as error:
            filling.error = BackendError(f"cannot flush {source}: {error.strerror}")
        except Exception:
            log.exception("a member was not filled", extra=fields(volume=record.name))
            filling.error = RemoraError("a fault in the daemon; see its log")
        finally:
            filling.ended_s = monotonic_s()
            filling.ended.set()
            self.begin_due()

    def _send(
        self, record: VolumeRecord, source: Path, total_bytes: int, filling: Filling
    ) -> int:
        """Return the bytes on the line, here or at the holder that brings the files."""
        if filling.holder:
            carried = self._by(filling.holder, record, filling)
            if carried is not None:
                return carried
        # A later store into a page that is dirty already would change no time: it would
        # never be found.
        files.sync_filesystem(source)
        return self._transfer.send_ahead(
            filling.node_id,
            volume_id=record.id,
            epoch=filling.since[0],
            source=source,
            total_bytes=total_bytes,
        )

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
        carried_bytes: int = answer.get("carried_bytes", 0)
        return carried_bytes
