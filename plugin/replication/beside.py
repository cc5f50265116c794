"""
What goes on beside a volume's rounds: fillings, and commits that take longer.

When something of it ends, a round is due: it tells who has the commit, or goes on.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from backends.system.clock import Deadline, monotonic_s, pause
from plugin.replication.deliveries import Deliveries
from plugin.replication.progress import Progress
from plugin.replication.seeding import Seeding

_STILL_S: Final = 5.0
_LOOK_S: Final = 0.1
_ASK_AGAIN_S: Final = 1.0
_KEPT_S: Final = 600.0


class Beside:
    """See the module's text."""

    def __init__(
        self, seeding: Seeding, deliveries: Deliveries, progress: Progress
    ) -> None:
        self._kinds = seeding, deliveries
        self._deliveries = deliveries
        self._progress = progress

    def begin_round(self, volume_id: str) -> None:
        """Note that what has come to an end by now is no cause for another round."""
        for each in self._kinds:
            each.begin_round(volume_id)

    def is_due(self, volume_id: str) -> bool:
        """Return whether something has ended beside the rounds since the last one."""
        return any(each.is_due(volume_id) for each in self._kinds)

    def are_due(self, volume_ids: Collection[str]) -> bool:
        """
        Return whether volumes that have their rounds together are due for one.

        In each, containers of all stand still. So while a commit of one is on its way,
        only time makes them due, and not each of the others that comes to an end.
        """
        on_the_way = map(self._deliveries.is_under_way, volume_ids)
        waits = len(volume_ids) > 1 and any(on_the_way)
        return not waits and any(map(self.is_due, volume_ids))

    def keep_only(self, volume_ids: Collection[str]) -> None:
        """
        Forget what has ended of volumes that have no rounds, but after some minutes.

        Last syncs and moves ask for it without any.
        """
        since_s = monotonic_s() - _KEPT_S
        for each in self._kinds:
            each.keep_only(volume_ids, since_s=since_s)

    def wait(self, volume_id: str, deadline: Deadline, *, unheard: bool) -> bool:
        """
        Return whether something ends beside the rounds, before *deadline*.

        What stands still for some seconds is not waited for. If members are *unheard*,
        return soon that they may be asked again.
        """
        again = Deadline(_ASK_AGAIN_S)
        seen, still = list[int](), Deadline(_STILL_S)
        while not self.is_due(volume_id):
            under_way = self._progress.under_way(volume_id)
            if seen != (seen := [each.done.done_bytes for each in under_way]):
                still = Deadline(_STILL_S)
            alive = any(each.is_under_way(volume_id) for each in self._kinds)
            if unheard and not deadline.passed():
                if again.passed():
                    return True
            elif not alive or still.passed() or deadline.passed():
                return self.is_due(volume_id)
            pause(_LOOK_S)
        return True
