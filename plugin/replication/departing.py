"""
The copy of a node that is no member any more is removed if nothing is lost with it.

If this node was cut off or crashed as the owner, its copy may have bytes that no member
has. They are set apart.

When a node has told an owner which commit its copy has, the owner may count it as a
holder. So while the node asks the store whether it is a member, it tells nobody.
"""

from __future__ import annotations

import logging
from typing import Final

from backends.errors import BackendError, RemoraError
from backends.system.clock import Deadline
from plugin.logs import fields
from plugin.model import VolumeRecord
from plugin.ownership import copy_worth
from plugin.ownership.holders import Holders
from plugin.ownership.state import Tomb
from plugin.ownership.view import OwnershipView
from plugin.replication.journals import Journals
from plugin.replication.receiving import Receiving

log = logging.getLogger(__name__)
_REFRESH_DEADLINE_S: Final = 3.0
# A copy that is in use is left for another time.
_USE_WAIT_S: Final = 0.5


class Departing:
    """See the module's text."""

    def __init__(
        self,
        ownership: OwnershipView,
        holders: Holders,
        journals: Journals,
        receiving: Receiving,
    ) -> None:
        self._ownership = ownership
        self._holders = holders
        self._journals = journals
        self._receiving = receiving
        self._told: dict[str, str] = {}

    def depart(self, record: VolumeRecord, deadline: Deadline) -> None:
        """
        Remove the copy if nothing is lost with it; else log why it stays.

        The caller sees to it that nothing mounts the volume here meanwhile.

        Raises:
            StoreError: the cluster did not answer; nothing was changed.
            VolumeBusyError: the copy is in use.

        """
        with (
            self._receiving.departing(record.id),
            self._journals.alone(record, Deadline(_USE_WAIT_S)),
        ):
            self._ownership.heads.refresh(_REFRESH_DEADLINE_S)
            if not self._ownership.has_departed(record):
                return
            try:
                self._require_superseded(record)
                self._ownership.backend_of(record).remove(
                    record.volume(), deadline_s=deadline.remaining_s()
                )
            except RemoraError as error:
                self._tell(record, str(error))
                return
        self._told.pop(record.id, None)
        log.info(
            "a copy goes: this node is no member any more",
            extra=fields(volume=record.name, id=record.id),
        )

    def keep_unknown(self, record: VolumeRecord, tomb: Tomb) -> None:
        """
        Set apart what this node has of a removed volume beyond what was committed.

        Raises:
            VolumeBusyError: the copy is in use.

        """
        with self._journals.alone(record, Deadline(_USE_WAIT_S)):
            copy = self._ownership.copy_state(record)
            if copy is not None and copy_worth.is_unknown(copy, tomb):
                self._receiving.set_apart(record)

    def _require_superseded(self, record: VolumeRecord) -> None:
        """Set diverged bytes apart; raise BackendError unless others keep the rest."""
        head = self._ownership.heads.read(record.id).head
        copy = self._ownership.copy_state(record)
        if head is None or copy is None:
            raise BackendError("it is not known what the copy has")
        lineage = self._ownership.heads.lineage(record.id)
        if copy_worth.diverged(copy, head, lineage):
            self._receiving.set_apart(record)
        elif not copy_worth.superseded(copy, head, lineage):
            raise BackendError(f"commit {copy.commit} is not known to be kept yet")
        if not self._holders.standing(record.id):
            raise BackendError("no other node says that it has the newest commit")

    def _tell(self, record: VolumeRecord, reason: str) -> None:
        """Warn once of each reason: `depart` is called again every few seconds."""
        if self._told.get(record.id) == reason:
            return
        self._told[record.id] = reason
        log.warning(
            "a copy stays though this node is no member: %s",
            reason,
            extra=fields(volume=record.name, id=record.id),
        )
