"""
A watch that survives its connection.

A thread of its own reads etcd's stream and puts batches into a bounded queue. After
any break it goes on with the revision after the last one that it has read. Silence is
no proof of health, so a stream that says nothing for a while is opened anew.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections.abc import Iterator
from typing import Any, Final, NoReturn

import msgspec
import urllib3
from urllib3.exceptions import HTTPError

from backends.system import clock
from backends.system.decoding import from_json
from plugin.errors import StoreError
from plugin.store.base import CompactedError, Event
from plugin.store.etcd.client import Client
from plugin.store.etcd.codec import Namespace, revision_of
from plugin.store.etcd.errors import is_token_refused
from plugin.store.etcd.member import ANSWER_SIZE_MAX

log = logging.getLogger(__name__)
_READ_SIZE: Final = 256 * 1024
_QUEUE_MAX: Final = 10_000
_RETRY_PAUSE_S: Final = 0.1


class EtcdWatch:
    """The `Watch` on an etcd cluster; its thread ends with it."""

    def __init__(
        self, client: Client, names: Namespace, prefix: str, after_revision: int
    ) -> None:
        self._reader = Reader(client, names, prefix, after_revision)
        weakref.finalize(self, self._reader.stop).atexit = False
        threading.Thread(
            target=self._reader.run, name="etcd-watch", daemon=True
        ).start()

    def next(self, timeout_s: float) -> list[Event]:
        """
        Return the changes since the last call; wait *timeout_s* for the first one.

        Raises:
            StoreError: it is stopped, or no member can be watched: call it again.

        """
        return self._reader.next_events(timeout_s)

    @property
    def heard_s(self) -> float:
        """Return when etcd last said something, in `clock.monotonic_s`."""
        return self._reader.heard_s

    @property
    def opened(self) -> int:
        """Return how often a stream was opened for what `next` has returned so far."""
        return self._reader.opened

    def stop(self) -> None:
        """Let go of the connection; `next` raises StoreError from now on."""
        self._reader.stop()


class Reader:
    """What the thread of a watch does."""

    def __init__(
        self, client: Client, names: Namespace, prefix: str, after_revision: int
    ) -> None:
        self._client = client
        self._names = names
        self._range = names.below(prefix)
        self._revision = after_revision
        self._events: list[Event] = []
        self._changed = threading.Condition()
        self._compacted: CompactedError | None = None
        self._fault = ""
        self._failures = 0
        self._stopped = False
        self.heard_s = clock.monotonic_s()
        self.opened = 0
        self._response: urllib3.BaseHTTPResponse | None = None

    def next_events(self, timeout_s: float) -> list[Event]:
        """Return what has come, waiting for the first at most *timeout_s*."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._events or self._compacted or self._stopped, timeout_s
            )
            if self._stopped:
                raise StoreError("the store is closed")
            if self._events:
                events, self._events = self._events, []
                self._changed.notify_all()
                return events
            if self._compacted is not None:
                raise self._compacted
            # As long as not all members were tried, one may work.
            if self._failures >= len(self._client.settings.endpoints):
                raise StoreError(f"cannot watch etcd: {self._fault}")
            return []

    def stop(self) -> None:
        """End the thread, whatever it waits for."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            response = self._response
        if response is not None:
            # The reading thread may just be closing the connection itself.
            with contextlib.suppress(OSError, ValueError, RuntimeError):
                response.shutdown()

    def run(self) -> None:
        """Read until stopped, or until history is lost."""
        while not (self._stopped or self._compacted or self._client.closed):
            try:
                self._read_once()
            except CompactedError as error:
                self._end(error)
            except StoreError as error:
                self._failures += 1
                self._fault = str(error)
            except Exception as error:  # whoever waits for us has to hear of it
                log.exception("cannot follow etcd")
                self._end(CompactedError(f"internal error: {error}"))
            clock.pause(_RETRY_PAUSE_S)

    def _end(self, error: CompactedError) -> None:
        """Let `next_events` raise *error*: all has to be read anew."""
        with self._changed:
            self._compacted = error
            self._changed.notify_all()

    def _read_once(self) -> None:
        """Read a stream to its end, which comes by silence at the latest."""
        request = {**self._range, "start_revision": str(self._revision + 1)}
        response = self._client.open_stream("/v3/watch", {"create_request": request})
        with self._changed:
            self._response = response
            self.opened += 1
            stopped = self._stopped
        try:
            for line in [] if stopped else _lines(response):
                self._handle(line)
        except (HTTPError, OSError):
            pass  # a break or silence: both are healed by opening anew
        finally:
            with self._changed:
                self._response = None
            response.close()

    def _handle(self, line: bytes) -> None:
        """Take one message of the stream in."""
        try:
            message: dict[str, Any] = from_json(line, dict[str, Any])
        except msgspec.MsgspecError as error:
            raise StoreError(f"etcd sent no message: {error}") from error
        result = message.get("result")
        if result is None:
            fault = message.get("error", {})
            self._refused(str(fault.get("message", fault)))
        if oldest := int(result.get("compact_revision", 0)):
            raise CompactedError(f"revisions before {oldest} are no longer kept")
        if result.get("canceled"):
            self._refused(str(result.get("cancel_reason", "the watch was cancelled")))
        if result.get("created") and revision_of(result) < self._revision:
            self._require_history()
        self._failures = 0
        self.heard_s = clock.monotonic_s()
        if events := self._names.events(result.get("events", [])):
            self._put(events)

    def _require_history(self) -> None:
        """
        Raise `CompactedError` if the cluster's revision is older than ours.

        A single member may be behind, and catches up. But a cluster whose data was
        replaced by a backup is behind as well, and its watch would be silent for long.
        """
        answer = self._client.call(
            "/v3/kv/range",
            {"key": self._names.slot("")},
            deadline=self._client.deadline(),
        )
        if revision_of(answer) < self._revision:
            raise CompactedError(
                f"etcd is at revision {revision_of(answer)}, before {self._revision}"
            )

    def _refused(self, reason: str) -> NoReturn:
        if is_token_refused(reason):
            self._client.forget()
        raise StoreError(reason)

    def _put(self, events: list[Event]) -> None:
        """Queue *events*; wait while the queue is full, and etcd with us."""
        with self._changed:
            self._changed.wait_for(
                lambda: len(self._events) < _QUEUE_MAX or self._stopped
            )
            self._events += events
            # etcd never divides a revision between two messages.
            self._revision = events[-1].revision
            self._changed.notify_all()


def _lines(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """Yield the messages of a stream, each when it is whole."""
    pending = bytearray()
    while chunk := response.read1(_READ_SIZE):
        pending += chunk
        if b"\n" in chunk:
            *lines, rest = bytes(pending).split(b"\n")
            yield from (line for line in lines if line)
            pending = bytearray(rest)
        if len(pending) > ANSWER_SIZE_MAX:
            raise CompactedError("more changes in one message than are taken")
