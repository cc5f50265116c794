"""Calls to the cluster as a whole: fail-over between members, deadlines, signing in."""

from __future__ import annotations

import threading
from typing import Any, Final

import urllib3

from backends.system import clock
from plugin.errors import StoreError
from plugin.store.etcd.errors import AttemptError, NoAnswerError, RefusedError
from plugin.store.etcd.member import Member
from plugin.store.etcd.settings import EtcdSettings, tls_context

# If all members failed, an election or a restart gets this time.
_ROUND_PAUSE_S: Final = 0.1
# A token may expire between two calls, and the users' revision change once more.
_SIGN_INS_MAX: Final = 3


class Client:
    """Calls to a cluster; threads may share it."""

    def __init__(self, settings: EtcdSettings) -> None:
        if not settings.endpoints:
            raise StoreError("no etcd endpoint is configured")
        for each in settings.endpoints:
            if not each.startswith(("http://", "https://")):
                raise StoreError(f"etcd's endpoint {each!r} has no http:// or https://")
        secure = any(each.startswith("https:") for each in settings.endpoints)
        context = tls_context(settings) if secure else None
        self.settings = settings
        self._members = [Member(each, context) for each in settings.endpoints]
        self._preferred = 0
        self._token = ""
        self._lock = threading.Lock()
        self._sign_in_lock = threading.Lock()
        self._closed = False

    def deadline(self) -> clock.Deadline:
        """Return the deadline of a call that begins now."""
        return clock.Deadline(self.settings.call_deadline_s)

    def call(
        self,
        path: str,
        body: object,
        *,
        deadline: clock.Deadline,
        repeatable: bool = True,
    ) -> dict[str, Any]:
        """
        Return the cluster's answer to *body*.

        A call that is not *repeatable* goes to another member only if the last one has
        surely not done it.

        Raises:
            RefusedError: the cluster said no.
            NoAnswerError: no member answered in time, or it is not known what one did.

        """
        for _ in range(_SIGN_INS_MAX):
            token = self._signed_in(deadline)
            try:
                return self._fail_over(path, body, token, deadline, repeatable)
            except RefusedError as error:
                if not (token and error.token_refused):
                    raise
                refused = error
                self.forget(token)
        raise refused

    def open_stream(self, path: str, body: object) -> urllib3.BaseHTTPResponse:
        """
        Return a stream from the preferred member; after an error, prefer another one.

        Raises:
            RefusedError, NoAnswerError: as `call`.

        """
        token = self._signed_in(self.deadline())
        member = self._member()
        try:
            return member.open_stream(
                path,
                body,
                token=token,
                first_s=self.settings.attempt_s,
                idle_s=self.settings.watch_idle_s,
            )
        except AttemptError as error:
            self._avoid(member)
            raise NoAnswerError(str(error), maybe_done=False) from error
        except RefusedError as error:
            if token and error.token_refused:
                self.forget(token)
            raise

    def forget(self, token: str = "") -> None:
        """Sign in again at the next call, unless that has happened since *token*."""
        with self._lock:
            if not token or self._token == token:
                self._token = ""

    def close(self) -> None:
        """Refuse further calls and close idle connections."""
        self._closed = True
        for member in self._members:
            member.close()

    @property
    def closed(self) -> bool:
        """Return whether `close` was called."""
        return self._closed

    def require_open(self) -> None:
        """Raise `StoreError` after `close`."""
        if self._closed:
            raise StoreError("the store is closed")

    def _fail_over(
        self,
        path: str,
        body: object,
        token: str,
        deadline: clock.Deadline,
        repeatable: bool,
    ) -> dict[str, Any]:
        """Ask members in turn until one answers or time is over."""
        self.require_open()
        fault = "no time was left to ask"
        failures = lasting = 0
        while not deadline.passed():
            member = self._member()
            attempt_s = min(self.settings.attempt_s, deadline.remaining_s())
            try:
                return member.ask(
                    path, body, token=token, first_s=attempt_s, deadline=deadline
                )
            except AttemptError as error:
                self._avoid(member)
                self.require_open()
                fault = str(error)
                if error.maybe_done and not repeatable:
                    raise NoAnswerError(fault, maybe_done=True) from error
                lasting = lasting + 1 if error.lasting else 0
            if lasting == len(self._members):
                break
            failures += 1
            if failures % len(self._members) == 0:
                clock.pause(min(_ROUND_PAUSE_S, deadline.remaining_s()))
        raise NoAnswerError(fault, maybe_done=False)

    def _signed_in(self, deadline: clock.Deadline) -> str:
        """Return a token, or an empty text where no user is configured."""
        self.require_open()
        if not self.settings.user:
            return ""
        # One thread signs in, the others wait for its token, each within its deadline.
        if not self._sign_in_lock.acquire(timeout=deadline.remaining_s()):
            raise NoAnswerError("nobody could sign in", maybe_done=False)
        try:
            if not self._token:
                body = {"name": self.settings.user, "password": self.settings.password}
                token = self._fail_over(
                    "/v3/auth/authenticate", body, "", deadline, repeatable=True
                ).get("token", "")
                with self._lock:
                    self._token = str(token)
            return self._token
        finally:
            self._sign_in_lock.release()

    def _member(self) -> Member:
        with self._lock:
            return self._members[self._preferred]

    def _avoid(self, member: Member) -> None:
        """Prefer the next member, unless another thread has already moved on."""
        with self._lock:
            if self._members[self._preferred] is member:
                self._preferred = (self._preferred + 1) % len(self._members)
