"""
Leases that end on our clock, before they end on etcd's.

The deadline counts from *sending* the last keepalive that was answered: etcd counts
from a later moment. The clock is CLOCK_BOOTTIME, which neither jumps nor stops while
the machine sleeps. A lease that has ended here is never revived, even if etcd would.
"""

from __future__ import annotations

import math
import secrets
import threading
from typing import Any, Final

from backends.system import clock
from plugin.errors import StoreError
from plugin.store.etcd.client import Client
from plugin.store.etcd.codec import Namespace
from plugin.store.etcd.errors import (
    ALREADY_EXISTS_MESSAGE,
    NOT_FOUND,
    NoAnswerError,
    RefusedError,
)

_KNOWN_MAX: Final = 1_000
# A keepalive is repeated after so many changes of the leader.
_TERMS_MAX: Final = 3
_LONG_AGO_S: Final = -math.inf
# etcd ends a lease within a second; if it is late by this much, it has forgotten it.
_FORGOTTEN_S: Final = 3


class Leases:
    """The leases that this process has granted or renewed."""

    def __init__(self, client: Client, names: Namespace) -> None:
        self._client = client
        self._names = names
        # For each lease its time to live, and when it ends; the oldest come first.
        self._known: dict[int, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def grant(self, ttl_s: float) -> int:
        """Return a new lease; see `EtcdStore.grant_lease`."""
        sent_s = clock.boottime_s()
        lease = self.grant_raw(math.ceil(ttl_s), self._client.deadline())
        self._remember(lease, ttl_s, sent_s + ttl_s)
        return lease

    def grant_raw(self, ttl_s: int, deadline: clock.Deadline) -> int:
        """Return a new lease that nobody renews."""
        # We choose the id, so that a grant whose answer was lost can be repeated.
        lease = secrets.randbelow(2**62) + 1
        body = {"ID": str(lease), "TTL": str(max(1, ttl_s))}
        try:
            self._client.call("/v3/lease/grant", body, deadline=deadline)
        except RefusedError as error:
            if ALREADY_EXISTS_MESSAGE not in error.message:
                raise
        return lease

    def keep_alive(self, lease: int) -> bool:
        """
        Return whether *lease* lives; see `EtcdStore.keep_alive`.

        Raises:
            StoreError: there was no answer; `ends_s` still tells how long it is ours.

        """
        deadline = self._client.deadline()
        ends_s = self.ends_s(lease)
        if ends_s is not None:
            left_s = ends_s - clock.boottime_s()
            if left_s <= 0:
                return False
            deadline = clock.Deadline(min(left_s, deadline.remaining_s()))
        try:
            sent_s, answer = self._renewed(lease, deadline)
        except StoreError:
            ends_s = self.ends_s(lease)  # another thread may have renewed it
            if ends_s is not None and clock.boottime_s() >= ends_s:
                return False
            raise
        return self._renew(lease, sent_s, answer)

    def end_forgotten(self, lease: int, deadline_s: float) -> bool:
        """
        End *lease*, another node's or boot's, if its time is over; return if it was.

        etcd up to 3.4 compares wall clocks before it ends a lease (its issue 12291): if
        its leader's clock was set back by an hour, a dead node's lease goes on for an
        hour more. But etcd tells the time left correctly, and does not renew the lease.

        A member that does not know the new leader yet may ask the old one, and name the
        new one's term all the same. So we ask again after a read that a majority
        confirms: if the term is the same, its leader has answered.

        Raises:
            StoreError: there was no answer.

        """
        deadline = clock.Deadline(deadline_s)
        first = self._overdue_in(lease, deadline)
        if not first or first != self._term(deadline):
            return False
        if first != self._overdue_in(lease, deadline):
            return False
        # Not repeatable: after a change of the leader the lease would have time again.
        body = {"ID": str(lease)}
        try:
            self._client.call(
                "/v3/lease/revoke", body, deadline=deadline, repeatable=False
            )
        except RefusedError as error:
            if error.grpc_code != NOT_FOUND:
                raise
        return True

    def _overdue_in(self, lease: int, deadline: clock.Deadline) -> str:
        """Return the leader's term in which *lease* is long over, "" if it is not."""
        answer = self._client.call(
            "/v3/lease/timetolive", {"ID": str(lease)}, deadline=deadline
        )
        # For a lease that etcd does not know, the answer has no granted time.
        if "grantedTTL" not in answer or int(answer.get("TTL", 0)) > -_FORGOTTEN_S:
            return ""
        return str(answer["header"]["raft_term"])

    def _term(self, deadline: clock.Deadline) -> str:
        """Return the term of the leader that a majority confirms now."""
        read = self._client.call(
            "/v3/kv/range", {"key": self._names.slot("")}, deadline=deadline
        )
        return str(read["header"]["raft_term"])

    def ends_s(self, lease: int) -> float | None:
        """Return when *lease* ends, in `clock.boottime_s`; None if it is not ours."""
        with self._lock:
            known = self._known.get(lease)
        return None if known is None else known[1]

    def require(self, lease: int) -> None:
        """Raise `StoreError` if *lease* is known to have ended."""
        ends_s = self.ends_s(lease)
        if ends_s is not None and clock.boottime_s() >= ends_s:
            raise StoreError(f"lease {lease} has ended")

    def _renewed(
        self, lease: int, deadline: clock.Deadline
    ) -> tuple[float, dict[str, Any]]:
        """
        Return when a keepalive was sent that the cluster's leader has answered.

        A leader that was stopped and runs again answers keepalives before it notices
        that there is another leader, which may let the lease end. So a read that a
        majority confirms comes after the keepalive, and must be of the same term.
        """
        body = {"ID": str(lease)}
        for _ in range(_TERMS_MAX):
            # A repeated keepalive is sent later, but counts from here, to be safe.
            sent_s = clock.boottime_s()
            answer = self._client.call("/v3/lease/keepalive", body, deadline=deadline)
            result = answer.get("result", {})
            if result["header"]["raft_term"] == self._term(deadline):
                return sent_s, result
        raise NoAnswerError("its leader keeps changing", maybe_done=True)

    def _renew(self, lease: int, sent_s: float, answer: dict[str, Any]) -> bool:
        """Return whether *answer*, to what was sent at *sent_s*, keeps *lease*."""
        # For a lease that it does not know, etcd answers without a TTL.
        granted_s = float(answer.get("TTL", 0))
        with self._lock:
            ttl_s, ends_s = self._known.get(lease, (granted_s, math.inf))
            # Another thread may have seen it end: then it stays so.
            if granted_s <= 0 or clock.boottime_s() >= ends_s:
                self._known[lease] = (ttl_s, _LONG_AGO_S)
                return False
        ttl_s = min(ttl_s, granted_s)
        self._remember(lease, ttl_s, sent_s + ttl_s)
        return clock.boottime_s() < sent_s + ttl_s

    def _remember(self, lease: int, ttl_s: float, ends_s: float) -> None:
        with self._lock:
            known = self._known.pop(lease, None)
            # Several threads may renew it, and one may have ended it meanwhile.
            if known is not None and known[1] == _LONG_AGO_S:
                ends_s = _LONG_AGO_S
            elif known is not None:
                ends_s = max(ends_s, known[1])
            self._known[lease] = (ttl_s, ends_s)
            while len(self._known) > _KNOWN_MAX:
                del self._known[next(iter(self._known))]
