"""
The vote on what a new owner begins with: asking until nobody is missed that lives.

Silent is not dead: a node that lives and may have newer bytes is asked again and again,
for it may be ending writers, or have just started. If it stays silent the volume does
not begin here, whatever loss is accepted. Only an end of a lease is an end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from backends.system import clock
from backends.system.clock import Deadline
from plugin.errors import NotOwnerError
from plugin.model import VolumeRecord
from plugin.ownership import rules
from plugin.ownership.heads import REFRESH_DEADLINE_S
from plugin.ownership.refusals import elsewhere, explained, unanswered
from plugin.ownership.sealing import flush_live, has_gone_back
from plugin.ownership.state import EMPTY, Choice, Head, Lineage, RefusedError
from plugin.ownership.view import OwnershipView
from plugin.ownership.votes import Heard, Votes, unheard

_ASK_AGAIN_S: Final = 0.5
# No holder that answers later makes these good.
_OURS: Final = ("stale-epoch", "writers-running")


@dataclass(frozen=True, slots=True)
class Ballot:
    """The vote in one epoch of a volume, which this node is recovering."""

    ownership: OwnershipView
    votes: Votes
    record: VolumeRecord
    head: Head
    lineage: Lineage
    # The last owner has released the volume.
    orderly: bool
    heard: Heard = field(default_factory=Heard)

    def choose(self, deadline: Deadline) -> Choice:
        """
        Return what to begin with; this node's copy has promised by then.

        Raises:
            NotOwnerError: what is offered does not do, or a node that lives has not
                answered in half of the time that is left.

        """
        patience = Deadline(deadline.remaining_s() / 2)
        lease_of = self.ownership.nodes.lease_of
        try:
            while True:
                absent = [each for each in self.head.members if not lease_of(each)]
                self.votes.ask(
                    *(self.record, self.head, self.heard, patience),
                    absent=absent,
                    orderly=self.orderly,
                )
                self._add_own_vote()
                outcome = self._outcome()
                silent = self._silent(outcome, deadline)
                if not silent:
                    break
                if patience.passed():
                    raise self._unanswered(silent)
                clock.pause(_ASK_AGAIN_S)
            if isinstance(outcome, RefusedError):
                raise outcome
        except RefusedError as error:
            raise self._why_not(error) from None
        return outcome

    def require_nobody_back(self, choice: Choice, deadline: Deadline) -> None:
        """Raise NotOwnerError if somebody lives again who may have newer bytes."""
        if silent := self._silent(choice, deadline):
            raise self._unanswered(silent)

    def _add_own_vote(self) -> None:
        """Let this node's copy promise; its commit is its vote."""
        own, record = self.ownership.node_id, self.record
        if own in self.heard.votes:
            return
        before = self.ownership.copy_state(record)
        # What an earlier epoch has left running would write to what is sealed now.
        live = before is not None and 0 < before.live_epoch < self.head.epoch
        if live and self.ownership.has_users(record):
            raise RefusedError("writers-running", node=own)
        flush_live(self.ownership, record)
        with self.ownership.copy_states.changing(record.id):
            copy = self.ownership.copy_state(record)
            if copy is not None:
                promised = rules.promise(
                    copy,
                    self.head.epoch,
                    self.lineage,
                    writers_stopped=True,
                    gone_back=has_gone_back(self.ownership.heads, record.id, copy),
                )
                self.ownership.copy_states.write(record.id, promised)
                self.heard.votes[own] = promised.commit
            elif own not in self.lineage.owners():
                self.heard.votes[own] = EMPTY  # it has never had anything to lose

    def _outcome(self) -> Choice | RefusedError:
        try:
            return self.ownership.choose(
                self.record, self.head, self.lineage, self.heard.votes
            )
        except RefusedError as error:
            return error

    def _silent(self, outcome: Choice | RefusedError, deadline: Deadline) -> list[str]:
        """Return the nodes that live, were not heard, and may have newer bytes."""
        choice = outcome if isinstance(outcome, Choice) else None
        missing = unheard(self.head, self.heard.votes, choice, orderly=self.orderly)
        missing -= {self.ownership.node_id, *self.heard.without_copy}
        if missing and not any(map(self.ownership.nodes.lease_of, missing)):
            # One may have come back a moment ago.
            self.ownership.heads.refresh(
                min(deadline.remaining_s(), REFRESH_DEADLINE_S)
            )
        return self.ownership.membership.living(missing)

    def _unanswered(self, silent: Sequence[str]) -> NotOwnerError:
        why = next(filter(None, map(self.heard.faults.get, silent)), "no answer")
        return unanswered(self.record.name, self._names(silent), why)

    def _why_not(self, error: RefusedError) -> NotOwnerError:
        """Return the error if what is offered does not do; a holder may offer later."""
        own, head = self.ownership.node_id, self.head
        living = self.ownership.membership.living(
            each for each in head.holders if each != own
        )
        # A holder of EMPTY, the volume as it was made, has no bytes to give.
        if living and error.reason not in _OURS and head.committed != EMPTY:
            return elsewhere(self.record.name, head.committed, self._names(living))
        return explained(self.record.name, error, self.ownership.name_of)

    def _names(self, node_ids: Iterable[str]) -> list[str]:
        return [self.ownership.name_of(each) for each in node_ids]
