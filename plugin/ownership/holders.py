"""
Whether the holders of a volume's newest commit have it: what a pool has may go back.

A pool may come back from a backup, with its copies as they were; the head still says
that their node holds a newer commit. So each node takes itself off the holders then,
and no copy is given up before other holders have said at that moment that they have it,
and that it is in its place: until then it might turn out that it cannot be put there.
"""

from __future__ import annotations

import logging
from typing import Final

from backends.errors import RemoraError
from backends.system import clock
from plugin.logs import fields
from plugin.ownership.copy_worth import stands, strike
from plugin.ownership.state import Commit, CopyState, Head, RefusedError
from plugin.ownership.view import OwnershipView
from plugin.ownership.votes import AsksAll

log = logging.getLogger(__name__)
_STAND_DEADLINE_S: Final = 3.0
# A pool that comes back while the daemon runs is rare; each copy has a file to be read.
_LOOK_EVERY_S: Final = 600.0


class Holders:
    """See the module's text; a node that is alone has nobody to ask."""

    def __init__(self, ownership: OwnershipView, asks: AsksAll | None) -> None:
        self._ownership = ownership
        self._asks = asks
        self._look_due_s = 0.0

    def standing(self, volume_id: str) -> tuple[str, ...]:
        """Return the holders that have the newest commit, as each says just now."""
        ownership = self._ownership
        state = ownership.heads.read(volume_id)
        head = state.head
        if head is None or self._asks is None:
            return ()
        own = ownership.node_id
        asked = sorted({*head.holders} - {own})
        has = own in head.holders and self._has(volume_id, head)
        found = {own} if has and ownership.copy_states.in_place(volume_id) else set()
        living = [each for each in asked if ownership.nodes.lease_of(each)]
        answers = self._asks.call_all(
            living, "stand", {"volume": volume_id}, deadline_s=_STAND_DEADLINE_S
        )
        for node_id, answer in answers.items():
            # Earlier versions do not say the second.
            if isinstance(answer, RemoraError) or answer.get("in_place") is False:
                continue
            # A live copy is at no commit, but an owner has begun with all of it.
            owns = head.phase == "owned" and node_id == head.owner == state.locked_by
            if owns or Commit(*answer["commit"]) >= head.committed:
                found.add(node_id)
        return tuple(sorted(found))

    def mend(self) -> None:
        """Take this node off the holders of what its copies do not have."""
        now_s = clock.monotonic_s()
        if self._ownership.membership.alone or now_s < self._look_due_s:
            return
        try:
            # Of a pool that is not there nothing is known.
            self._ownership.copies()
            named = self._ownership.heads.naming(self._ownership.node_id)
        except RemoraError as error:
            log.info("what this node holds is looked at later: %s", error)
            return
        self._look_due_s = now_s + _LOOK_EVERY_S
        for volume_id in named:
            try:
                self._mend(volume_id)
            except RemoraError as error:
                log.warning(
                    "whether this node holds the commit is looked at later: %s",
                    error,
                    extra=fields(id=volume_id),
                )

    def _mend(self, volume_id: str) -> None:
        state = self._ownership.heads.read(volume_id)
        head, own = state.head, self._ownership.node_id
        if head is None or own not in head.holders or self._has(volume_id, head):
            return
        copy = self._copy(volume_id, head)
        try:
            struck = strike(head, node=own, copy=copy)
        except RefusedError:
            why = "no other node is known to have it"
        else:
            self._ownership.heads.change(state, struck)
            why = "others have it"
        log.warning(
            "this node's copy is older than the commit that it held: was the pool "
            "restored from a backup? %s",
            why,
            extra=fields(id=volume_id, commit=str(head.committed)),
        )

    def _has(self, volume_id: str, head: Head) -> bool:
        return stands(head, self._copy(volume_id, head))

    def _copy(self, volume_id: str, head: Head) -> CopyState | None:
        """Return this node's copy; one that nobody has owned is what was committed."""
        return self._ownership.copy_states.read(volume_id, initial=head.committed)
