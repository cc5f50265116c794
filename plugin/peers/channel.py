"""
The way to other nodes: a channel to each, opened at the first call and kept open.

A call never waits longer than its deadline, whatever state the other node, its machine
or the network is in: connections are made in threads of their own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Final

from backends.errors import RemoraError
from backends.system.aside import begun, log_fault
from backends.system.clock import Deadline, monotonic_s, pause
from plugin.errors import PeerSilentError, PeerUnreachableError
from plugin.peers.connection import Connection, StrangerError, connect
from plugin.peers.peer import Peer
from plugin.peers.sharing import SharedSsh

_FIRST_PAUSE_S: Final = 0.2
# So late, at most, we see that a node has come back.
_PAUSE_MAX_S: Final = 3.0
# A node that has just joined is let in as soon as the other has read its record.
_STRANGER_TRIES: Final = 6
_STRANGER_PAUSE_S: Final = 0.3


class PeerChannel:
    """Requests to *peer*; threads may share it."""

    def __init__(self, peer: Peer, ssh: SharedSsh) -> None:
        self.peer = peer
        self._ssh = ssh
        self._changed = threading.Condition()
        self._connection: Connection | None = None
        self._connecting: Future[None] | None = None
        self._fault = ""
        self._attempts = 0
        self._again_at_s = 0.0
        self._pause_s = _FIRST_PAUSE_S
        self._closed = False

    @property
    def address(self) -> str:
        """Return the address that the node answers at, or the first one it may have."""
        connection = self._connection
        return connection.address if connection else self.peer.addresses[0]

    @property
    def is_connected(self) -> bool:
        """Whether a connection stands at this moment."""
        connection = self._connection
        return connection is not None and not connection.fault

    def call(
        self,
        request: str,
        body: Mapping[str, Any],
        *,
        deadline_s: float,
        patient: Callable[[], bool] = lambda: True,
    ) -> Mapping[str, Any]:
        """
        Return the node's answer to *request*, for which it is waited while *patient*.

        Raises:
            PeerUnreachableError: it gave none in time; it may have done what we asked.
            RemoteError: it said no.

        """
        deadline = Deadline(deadline_s)
        connection = self._connected(deadline)
        return connection.ask(request, body, deadline=deadline, patient=patient)

    def close(self) -> None:
        """End the connection; further calls fail."""
        with self._changed:
            self._closed = True
            connection = self._connection
            self._changed.notify_all()
        if connection is not None:
            connection.close(f"the channel to node '{self.peer.name}' was closed")

    def _connected(self, deadline: Deadline) -> Connection:
        """Return a working connection; the first caller has it made."""
        with self._changed:
            seen = self._attempts
            while True:
                if self._closed:
                    raise PeerUnreachableError(
                        f"node '{self.peer.name}' is no peer any more"
                    )
                if self._connection is not None and not self._connection.fault:
                    return self._connection
                if self._attempts > seen:  # one that began at our call or during it
                    raise PeerUnreachableError(self._fault)
                if not self._connecting:
                    if monotonic_s() < self._again_at_s:
                        raise PeerUnreachableError(self._fault)
                    self._connecting = begun(self._connect, name="peers:channel")
                    self._connecting.add_done_callback(self._ended)
                    continue
                if deadline.passed():
                    raise PeerSilentError(
                        f"no connection to node '{self.peer.name}' in time"
                    )
                self._changed.wait(deadline.remaining_s())

    def _open(self) -> Connection:
        """
        Return a connection, to the address that worked last if it still does.

        Raises:
            PeerUnreachableError: why there is none.

        """
        others = [each for each in self.peer.addresses if each != self.address]
        addresses = (self.address, *others)
        fault = PeerUnreachableError("no address is known")
        for _ in range(_STRANGER_TRIES):
            for address in addresses:
                try:
                    return connect(self.peer, address, self._ssh)
                except PeerUnreachableError as error:
                    fault = error
            if not isinstance(fault, StrangerError):
                break
            pause(_STRANGER_PAUSE_S)
        raise fault

    def _connect(self) -> None:
        """Open a connection and serve it to its end: ssh ends with this thread."""
        connection = self._open()
        with self._changed:
            self._connecting = None
            self._attempts += 1
            self._connection = connection
            self._fault = f"node '{self.peer.name}' hung up at once"
            closed = self._closed
            self._changed.notify_all()
        if closed:
            connection.close("closed while it was opened")
        connection.serve()
        with self._changed:
            if connection.answered:
                self._pause_s = _FIRST_PAUSE_S
            else:
                self._back_off(connection.fault)

    def _ended(self, connecting: Future[None]) -> None:
        """Let callers hear why there is no connection, or none any more."""
        error = connecting.exception()
        if error is not None and not isinstance(error, PeerUnreachableError):
            log_fault(connecting)
        with self._changed:
            # The next attempt may have begun before this one's connection had ended.
            if self._connecting is connecting:
                self._connecting = None
                self._attempts += 1
                self._back_off(getattr(error, "cause", "a fault of ours"))
                self._changed.notify_all()

    def _back_off(self, fault: str) -> None:
        """Fail calls with *fault* for a while, each time a longer one."""
        self._fault = fault
        self._again_at_s = monotonic_s() + self._pause_s
        self._pause_s = min(2 * self._pause_s, _PAUSE_MAX_S)


class Peers:
    """The channels to all other nodes, in step with their records."""

    def __init__(self, ssh: SharedSsh) -> None:
        self.ssh = ssh
        self._lock = threading.Lock()
        self._channels: dict[str, PeerChannel] = {}

    def update(self, peers: Sequence[Peer]) -> None:
        """Have a channel to each of *peers*; one whose record has not changed stays."""
        with self._lock:
            before = self._channels
            self._channels = {
                peer.id: before[peer.id]
                if peer.id in before and before[peer.id].peer == peer
                else PeerChannel(peer, self.ssh)
                for peer in peers
            }
            kept = set(self._channels.values())
        for channel in before.values():
            if channel not in kept:
                channel.close()

    def channel(self, node_id: str) -> PeerChannel:
        """
        Return the channel to a node.

        Raises:
            PeerUnreachableError: no record of it has come.

        """
        with self._lock:
            channel = self._channels.get(node_id)
        if channel is None:
            raise PeerUnreachableError(f"node {node_id} is not known here")
        return channel

    def is_connected(self, node_id: str) -> bool:
        """Return whether a connection to the node stands at this moment."""
        with self._lock:
            channel = self._channels.get(node_id)
        return channel is not None and channel.is_connected

    def call(
        self,
        node_id: str,
        request: str,
        body: Mapping[str, Any],
        *,
        deadline_s: float,
        patient: Callable[[], bool] = lambda: True,
    ) -> Mapping[str, Any]:
        """Return a node's answer; see `PeerChannel.call`."""
        channel = self.channel(node_id)
        return channel.call(request, body, deadline_s=deadline_s, patient=patient)

    def call_all(
        self,
        node_ids: Sequence[str],
        request: str,
        body: Mapping[str, Any],
        *,
        deadline_s: float,
    ) -> dict[str, Mapping[str, Any] | RemoraError]:
        """Return each node's answer, or its error, all asked at once."""
        call = partial(self.call, request=request, body=body, deadline_s=deadline_s)
        asking = {
            each: begun(partial(call, each), name="peers:ask") for each in set(node_ids)
        }
        answers: dict[str, Mapping[str, Any] | RemoraError] = {}
        for node_id, answer in asking.items():
            try:
                answers[node_id] = answer.result()  # ends: each call has the deadline
            except RemoraError as error:
                answers[node_id] = error
            except Exception:  # noqa: BLE001 - it is logged
                log_fault(answer)
                fault = "a fault of ours; see the log"
                answers[node_id] = PeerUnreachableError(fault)
        return {each: answers[each] for each in node_ids}

    def close(self) -> None:
        """Close every channel, and the connections of transfers."""
        with self._lock:
            peers = [each.peer for each in self._channels.values()]
        self.update(())
        # At once: each may take its whole deadline.
        closing = [
            threading.Thread(target=self.ssh.close, args=(each,), name="peers:close")
            for each in peers
        ]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join()
