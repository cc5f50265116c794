"""The transfers to this node's copies that are under way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from plugin.errors import PeerRefusedError
from plugin.ownership.state import Commit


@dataclass(frozen=True, slots=True)
class Session:
    """A transfer under way, from *node_id*; *number* is what `Progress` calls it."""

    node_id: str
    volume_id: str
    commit: Commit
    number: int
    hang_up: Callable[[], None]


class Sessions:
    """See the module's text; threads share it."""

    def __init__(self) -> None:
        self._sessions: list[Session] = []
        self._lock = threading.Lock()

    def add(self, session: Session) -> None:
        """Note that it has begun."""
        with self._lock:
            self._sessions.append(session)

    def take_out(self, node_id: str, volume_id: str, commit: Commit) -> Session:
        """Return the session, which has ended, and forget it."""
        about = node_id, volume_id, commit
        with self._lock:
            ended = next(
                each
                for each in self._sessions
                if (each.node_id, each.volume_id, each.commit) == about
            )
            self._sessions.remove(ended)
        return ended

    def require_alone(self, node_id: str, volume_id: str) -> None:
        """Raise PeerRefusedError if a node other than *node_id* sends the volume."""
        for each in self._of(volume_id):
            if each.node_id != node_id:
                raise PeerRefusedError(
                    f"node {each.node_id} is sending volume {volume_id}",
                    hint="retry when that has ended",
                )

    def hang_up(self, volume_id: str) -> None:
        """End all transfers of a volume; their rsyncs live on for a moment."""
        for each in self._of(volume_id):
            each.hang_up()

    def hang_up_of(self, node_id: str, volume_id: str, epoch: int) -> None:
        """End the transfers of what *node_id* has of an epoch of a volume."""
        for each in self._of(volume_id):
            if (each.node_id, each.commit.epoch) == (node_id, epoch):
                each.hang_up()

    def _of(self, volume_id: str) -> list[Session]:
        with self._lock:
            return [each for each in self._sessions if each.volume_id == volume_id]
