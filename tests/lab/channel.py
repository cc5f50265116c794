"""The host's end of a node's serial line: requests out, answers in, by number."""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import socket
import threading
from typing import Any

# Requests get through even to a node without network; a node that does not answer for
# longer than a command's own deadline and this is a broken one.
GRACE_S = 30.0

# Files of the exchange are named by them, and those of earlier boots are still there.
_numbers = itertools.count(1)


class NodeDownError(ConnectionError):
    """The node's power failed, or its kernel ended."""


class Answers:
    """The answers to one request, in the order in which they come."""

    def __init__(self, channel: Channel, number: int) -> None:
        self.number = number
        self._channel = channel
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

    def put(self, answer: dict[str, Any] | None) -> None:
        """Hand in an answer; None says that there will be no more."""
        self._queue.put(answer)

    def next(self, timeout_s: float) -> dict[str, Any]:
        """
        Return the next answer.

        Raises:
            NodeDownError: there will be none.
            TimeoutError: there was none in time.
        """
        try:
            answer = self._queue.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError(f"no answer within {timeout_s} s") from None
        if answer is None:
            self._queue.put(None)
            raise NodeDownError("the node is down")
        return answer

    def close(self) -> None:
        """Take no more answers."""
        self._channel.forget(self.number)


class Channel:
    """Both directions of the line; any thread may use it."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._lock = threading.Lock()
        self._open = True
        # Number 0 is the node's own message: that it has booted.
        self._waiting: dict[int, Answers] = {0: Answers(self, 0)}
        self.booted = self._waiting[0]
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def number(self) -> int:
        """Return a number for the next request, which no other has had."""
        return next(_numbers)

    def send(self, number: int, **request: Any) -> Answers:
        """Return where the answers to *request* will come in."""
        answers = Answers(self, number)
        data = json.dumps({"id": number, **request}).encode() + b"\n"
        with self._lock:
            if not self._open:
                raise NodeDownError("the node is down")
            self._waiting[number] = answers
            try:
                self._end.sendall(data)
            except OSError as error:
                raise NodeDownError("the node is down") from error
        return answers

    def ask(self, *, timeout_s: float = GRACE_S, **request: Any) -> dict[str, Any]:
        """Return the one answer to *request*."""
        answers = self.send(self.number(), **request)
        try:
            return answers.next(timeout_s)
        finally:
            answers.close()

    def forget(self, number: int) -> None:
        """Drop what may still come for request *number*."""
        self._waiting.pop(number, None)

    def close(self) -> None:
        """Close the line."""
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._end.close()

    def _read(self) -> None:
        rest = b""
        while True:
            try:
                data = self._end.recv(65536)
            except OSError:
                data = b""
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                answer = json.loads(line)
                if (answers := self._waiting.get(answer["id"])) is not None:
                    answers.put(answer)
        with self._lock:
            self._open = False
            for answers in list(self._waiting.values()):
                answers.put(None)
