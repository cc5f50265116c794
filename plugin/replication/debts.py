"""What members have said that they lack: it is sent next, or they are filled."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from backends.rsync.journal.entries import Commit
from plugin.replication.deliveries import Delivery
from plugin.replication.missing_paths import decoded_paths

# A member that lacks so many files of a whole commit would need many exchanges.
_FAR_BEHIND_FROM: Final = 100


@dataclass(frozen=True, slots=True)
class Debt:
    """
    A member lacks *missing*, and what has changed after *since*.

    *whole*: it needs a commit that names everything. Of that it believes files that
    have changed meanwhile only if they come in the same round, so *since* stays.
    """

    since: Commit
    whole: bool
    missing: Collection[bytes]


class Debts:
    """See the module's text; a volume's are used in one thread at a time."""

    def __init__(self) -> None:
        self._owed: dict[tuple[str, str], Debt] = {}
        # By volume, the nodes that lack so much that they are filled first.
        self._far_behind: dict[str, frozenset[str]] = {}

    def note(self, ended: Delivery) -> None:
        """Note what a member has said that it lacks, after the round was over."""
        missing = decoded_paths(ended.answer.get("missing", []))
        whole = ended.base is None or "full" in ended.answer
        if not ended.filled:
            self.look(ended.volume_id, ended.node_id, missing, whole=whole)
        debt = Debt(ended.since, whole, missing)
        self._owed[ended.volume_id, ended.node_id] = debt

    def look(
        self, volume_id: str, node_id: str, missing: Collection[bytes], *, whole: bool
    ) -> bool:
        """Return whether a member that lacks *missing* is to be filled first."""
        is_far = whole and len(missing) >= _FAR_BEHIND_FROM
        if is_far:
            self.fill(volume_id, [node_id])
        return is_far

    def fill(self, volume_id: str, node_ids: Iterable[str]) -> None:
        """Note that members are to be filled first."""
        if far := self._far(volume_id).union(node_ids):
            self._far_behind[volume_id] = far

    def is_far_behind(self, volume_id: str, node_id: str) -> bool:
        """Return whether the member is to be filled first."""
        return node_id in self._far(volume_id)

    def settle(self, volume_id: str, node_ids: Iterable[str]) -> None:
        """Note that members have a commit."""
        if left := self._far(volume_id).difference(node_ids):
            self._far_behind[volume_id] = left
        else:
            self._far_behind.pop(volume_id, None)

    def take(self, volume_id: str, node_ids: Collection[str]) -> dict[str, Debt]:
        """Return what those of *node_ids* lack that have said so, and forget it."""
        keys = [(volume_id, each) for each in node_ids]
        return {key[1]: self._owed.pop(key) for key in keys if key in self._owed}

    def apart(self, volume_id: str, debts: Mapping[str, Debt]) -> set[str]:
        """Return who gets a commit that names everything, whatever its own is."""
        whole = {each for each in debts if debts[each].whole}
        return whole | self._far(volume_id)

    def _far(self, volume_id: str) -> frozenset[str]:
        return self._far_behind.get(volume_id, frozenset())
