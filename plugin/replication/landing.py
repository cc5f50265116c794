"""
Commits of one moment on their way: none becomes a member's before all have come there.

Else what is small would count there long before what is large. The members are still
asked one by one; but nothing that takes long lies in between.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from typing import Final

from backends.system.clock import Deadline

# What takes longer is not waited for: its sibling would be ever further behind.
_WAIT_S: Final = 30.0


class Landing:
    """See the module's text; the threads that bring *volume_ids* share it."""

    def __init__(self, volume_ids: Collection[str], *, wait_s: float = _WAIT_S) -> None:
        self._wait_s = wait_s
        self._changed = threading.Condition()
        # Nobody knows yet to whom these are brought.
        self._packing = {*volume_ids}
        self._on_the_way: set[tuple[str, str]] = set()
        self._hurried: set[str] = set()
        self._waiting: set[tuple[str, str]] = set()

    def begin(self, volume_id: str, node_ids: Collection[str]) -> None:
        """Note that a volume is on its way to *node_ids*; `come` or `end` follows."""
        with self._changed:
            self._on_the_way |= {(volume_id, each) for each in node_ids}
            self.leave(volume_id)

    def leave(self, volume_id: str) -> None:
        """Note that it is known to whom the volume is brought, or that it is not."""
        with self._changed:
            self._packing.discard(volume_id)
            self._changed.notify_all()

    def end(self, volume_id: str, node_id: str) -> None:
        """Note that nothing of the volume is on its way to the node any more."""
        with self._changed:
            self._on_the_way.discard((volume_id, node_id))
            self._changed.notify_all()

    def hurry(self, volume_id: str) -> None:
        """Let the volume wait for no other."""
        with self._changed:
            self._hurried.add(volume_id)
            self._changed.notify_all()

    def come(self, volume_id: str, node_id: str) -> None:
        """Return when the other volumes have come to the node too, or take long."""
        self.end(volume_id, node_id)
        deadline = Deadline(self._wait_s)
        with self._changed:
            self._waiting.add((volume_id, node_id))
            while not (volume_id in self._hurried or deadline.passed()) and (
                self._packing - {volume_id}
                or any(at == node_id for _, at in self._on_the_way)
            ):
                self._changed.wait(deadline.remaining_s())
            self._waiting.discard((volume_id, node_id))

    def is_waiting(self, volume_id: str, node_id: str) -> bool:
        """Return whether the volume has come to the node, and waits for others."""
        with self._changed:
            return (volume_id, node_id) in self._waiting
