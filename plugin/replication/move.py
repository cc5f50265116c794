"""One move of a volume to a node: its rounds, and when there are enough of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec

from backends.errors import RemoraError
from plugin.model import VolumeRecord
from plugin.replication.progress import TransferUnderWay

# A final sync of this much takes no notable time beside a container's stop and start.
_SMALL_BYTES: Final = 1024 * 1024
_SMALL_S: Final = 1.0
_ROUNDS_MAX: Final = 10
# Rounds in a row that carry no less than the one before: more of them would not help.
_AS_MUCH_MAX: Final = 2


class Round(msgspec.Struct, frozen=True):
    """One time that the node was brought in step: with which commit, and how much."""

    commit: str
    carried_bytes: int
    duration_s: float


class MoveView(msgspec.Struct, frozen=True):
    """
    How far a move is.

    ``small``: the last round carried little. ``mounted``: containers write.
    ``done_bytes`` to ``left_s`` are of the transfer under way, 0 and None without one.
    """

    volume: str
    node: str
    owner: str
    state: Literal["running", "done"]
    mounted: bool
    small: bool
    rounds: list[Round]
    done_bytes: int
    total_bytes: int
    left_s: int | None


@dataclass(slots=True)
class VolumeMove:
    """A move as the owner keeps it; *mounted*: whether containers may write."""

    record: VolumeRecord
    node_id: str
    mounted: bool = True
    ended: bool = False
    error: RemoraError | None = None
    rounds: list[Round] = field(default_factory=list)

    def end(self, moving: Future[None]) -> None:
        """Note that it goes on no more; it may never have begun."""
        error = moving.exception()
        if isinstance(error, RemoraError):
            self.error = error
        self.ended = True

    def is_small(self) -> bool:
        """Return whether the last round says that little is left."""
        if not self.rounds:
            return False
        last = self.rounds[-1]
        little = last.carried_bytes <= _SMALL_BYTES or last.duration_s < _SMALL_S
        return little or not self.mounted

    def is_over(self) -> bool:
        """Return whether one more round would not make the switch any shorter."""
        sizes = [each.carried_bytes for each in self.rounds]
        last = sizes[-_AS_MUCH_MAX - 1 :]
        no_less = len(last) > _AS_MUCH_MAX and last == sorted(last)
        return self.is_small() or no_less or len(sizes) >= _ROUNDS_MAX

    def view(
        self, under_way: Sequence[TransferUnderWay], *, owner: str, node: str
    ) -> Mapping[str, Any]:
        """Return the `MoveView`, as JSON has it, with the node's transfer if any."""
        ours = [
            each
            for each in under_way
            if (each.direction, each.node_id) == ("sending", self.node_id)
        ]
        transfer = ours[-1] if ours else None
        view: dict[str, Any] = msgspec.to_builtins(
            MoveView(
                volume=self.record.name,
                node=node,
                owner=owner,
                state="done" if self.ended else "running",
                mounted=self.mounted,
                small=self.is_small(),
                rounds=list(self.rounds),
                done_bytes=transfer.done.done_bytes if transfer else 0,
                total_bytes=transfer.done.total_bytes if transfer else 0,
                left_s=transfer.left_s() if transfer else None,
            )
        )
        return view
