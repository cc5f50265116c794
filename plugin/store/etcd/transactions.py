"""
Transactions whose outcome is known, though answers get lost.

A transaction that got no answer may have been done, or may wait in the queue of a
stopped member and be done in an hour. So each one also compares and writes a *slot*, a
key of its sender's: it succeeds only if the slot is as its sender left it, and leaves a
unique token there. To learn the outcome, the sender writes the slot itself, on the same
condition. The first of the two makes the other one impossible. If our write succeeds,
the transaction can never be done any more, and may be tried again. If our write fails,
it finds the token.

A slot carries one transaction at a time. Slots hang on a lease, so that the slots of a
dead sender go, too. Once a slot has gone, no transaction that needs it can succeed.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from backends.system import clock
from plugin.errors import StoreError
from plugin.store.base import Compare, Operation, Outcome, Put
from plugin.store.etcd.client import Client
from plugin.store.etcd.codec import (
    Namespace,
    encoded,
    revision_of,
    unchanged_since,
)
from plugin.store.etcd.errors import (
    NOT_FOUND,
    NoAnswerError,
    RefusedError,
    UnknownOutcomeError,
)
from plugin.store.etcd.leases import Leases

_TXN: Final = "/v3/kv/txn"
# Longer than any transaction waits; a new slot costs two calls when it has passed.
_SLOT_TTL_S: Final = 3600
_SLOTS_MAX: Final = 64


@dataclass(slots=True)
class _Slot:
    """A key that only we write, as we left it."""

    key: str
    mod_revision: int


class Transactions:
    """Transactions of one sender; threads may share it."""

    def __init__(self, client: Client, names: Namespace, leases: Leases) -> None:
        self._client = client
        self._names = names
        self._leases = leases
        self._sender = uuid.uuid4().hex
        self._made = 0
        self._free: list[_Slot] = []
        self._lock = threading.Lock()

    def run(
        self, conditions: Sequence[Compare], operations: Sequence[Operation]
    ) -> Outcome:
        """Do *operations* if *conditions* hold; see `Store.transact`."""
        for operation in operations:
            if isinstance(operation, Put) and operation.lease:
                self._leases.require(operation.lease)
        compares = [self._names.comparison(each) for each in conditions]
        # etcd takes one operation for each key; done in order, the last one counts.
        last = {each.key: each for each in operations}
        requests = [self._names.request(each) for each in last.values()]
        deadline = self._client.deadline()
        try:
            if not requests:
                return self._look(compares, deadline)
            return self._write(compares, requests, deadline)
        except RefusedError as error:
            if error.grpc_code == NOT_FOUND and "lease" in error.message:
                raise StoreError("a lease of this transaction has ended") from error
            raise

    def _look(self, compares: list[Any], deadline: clock.Deadline) -> Outcome:
        """Return whether the conditions hold; without a write this needs no slot."""
        answer = self._client.call(_TXN, {"compare": compares}, deadline=deadline)
        return Outcome(bool(answer.get("succeeded")), revision_of(answer))

    def _write(
        self, compares: list[Any], requests: list[Any], deadline: clock.Deadline
    ) -> Outcome:
        """Try until there is an outcome; each new try knows that no other was done."""
        while True:
            slot = self._borrow(deadline)
            outcome = self._try(slot, compares, requests, deadline)
            if outcome is not None:
                self._give_back(slot)
                return outcome

    def _try(
        self,
        slot: _Slot,
        compares: list[Any],
        requests: list[Any],
        deadline: clock.Deadline,
    ) -> Outcome | None:
        """Return the outcome of one try; None if it surely is and will not be done."""
        token = encoded(uuid.uuid4().bytes)
        body = {
            "compare": [*compares, unchanged_since(slot.key, slot.mod_revision)],
            "success": [*requests, _mark(slot, token)],
            "failure": [_look_at(slot)],
        }
        try:
            answer = self._client.call(_TXN, body, deadline=deadline, repeatable=False)
        except NoAnswerError as error:
            if not error.maybe_done:
                self._give_back(slot)
                raise
            return self._resolve(slot, token, error.cause, deadline)
        except RefusedError:
            self._give_back(slot)
            raise
        revision = revision_of(answer)
        if answer.get("succeeded"):
            slot.mod_revision = revision
            return Outcome(True, revision)
        found = _found(answer)
        if found is None or int(found["mod_revision"]) != slot.mod_revision:
            # The slot has ended, which told nothing about the conditions. Those that
            # wait beside it have most likely ended as well.
            with self._lock:
                self._free.clear()
            return None
        return Outcome(False, revision)

    def _resolve(
        self, slot: _Slot, token: str, cause: str, deadline: clock.Deadline
    ) -> Outcome | None:
        """
        Return the outcome of a try that got no answer; None as in `_try`.

        One attempt is made even after the deadline: knowing is worth the wait.

        Raises:
            UnknownOutcomeError: nobody could tell; the slot is used no more.

        """
        wait_s = max(deadline.remaining_s(), self._client.settings.attempt_s)
        ours = encoded(uuid.uuid4().bytes)
        body = {
            "compare": [unchanged_since(slot.key, slot.mod_revision)],
            "success": [_mark(slot, ours)],
            "failure": [_look_at(slot)],
        }
        unknown = f"etcd may or may not have done it: {cause}"
        try:
            # Safe to repeat: only the first can succeed, the next one finds `ours`.
            answer = self._client.call(_TXN, body, deadline=clock.Deadline(wait_s))
        except StoreError as error:
            raise UnknownOutcomeError(unknown, hint=error.hint) from error
        found = None if answer.get("succeeded") else _found(answer)
        if answer.get("succeeded") or (found and found.get("value") == ours):
            slot.mod_revision = _left_at(answer)
            self._give_back(slot)
            return None
        if found and found.get("value") == token:
            slot.mod_revision = int(found["mod_revision"])
            return Outcome(True, slot.mod_revision)
        raise UnknownOutcomeError(unknown)

    def _borrow(self, deadline: clock.Deadline) -> _Slot:
        """Return a slot that nobody uses, a new one if need be."""
        with self._lock:
            if self._free:
                return self._free.pop()
            self._made += 1
            number = self._made
        slot = _Slot(self._names.slot(f"{self._sender}/{number}"), 0)
        lease = self._leases.grant_raw(_SLOT_TTL_S, deadline)
        put = {"key": slot.key, "value": "", "lease": str(lease)}
        # Safe to repeat: only the first can succeed, the next one finds its slot.
        body = {
            "compare": [unchanged_since(slot.key, 0)],
            "success": [{"request_put": put}],
            "failure": [_look_at(slot)],
        }
        slot.mod_revision = _left_at(self._client.call(_TXN, body, deadline=deadline))
        return slot

    def _give_back(self, slot: _Slot) -> None:
        with self._lock:
            if len(self._free) < _SLOTS_MAX:
                self._free.append(slot)


def _mark(slot: _Slot, token: str) -> dict[str, Any]:
    """Return the write of *token* that leaves the slot on its lease."""
    return {"request_put": {"key": slot.key, "value": token, "ignore_lease": True}}


def _look_at(slot: _Slot) -> dict[str, Any]:
    return {"request_range": {"key": slot.key}}


def _found(answer: dict[str, Any]) -> dict[str, Any] | None:
    """Return the slot that a failed transaction found, if there was one."""
    pairs = answer["responses"][0]["response_range"].get("kvs", [])
    return pairs[0] if pairs else None


def _left_at(answer: dict[str, Any]) -> int:
    """Return the revision of our last write of the slot, this one or an earlier one."""
    if answer.get("succeeded"):
        return revision_of(answer)
    found = _found(answer)
    if found is None:
        raise UnknownOutcomeError("a slot of ours in etcd has ended")
    return int(found["mod_revision"])
