"""
What is written down of a volume's ownership: in the store and beside each copy.

`rules.py` says what becomes of it, and what the words mean.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import msgspec

from backends.base import VOLUME_ID, LineText, WholeNumber
from plugin.model import BackendKind, NodeId, NodeIdOrNone, VolumeName

Phase = Literal["idle", "recovering", "owned", "removing"]
# Of which moments a commit's files are: each of its own; all of one; and nobody wrote.
Quality = Literal["", "fuzzy", "snapshot", "quiesced"]
Reason = Literal[
    "locked",
    "removing",
    "not-owner",
    "stale-epoch",
    "writers-running",
    "no-copy",
    "would-begin-empty",
    "newer-elsewhere",
    "last-copy",
]


# When a volume was released if nobody noted it, or it never had an owner.
TIME_UNKNOWN: Final = "unknown"
# The moment of a base that its owner wrote itself: it is as a power cut leaves it.
WRITTEN_HERE: Final = "here"


class Commit(msgspec.Struct, frozen=True, order=True, array_like=True):
    """One state of a volume's bytes; ordered by epoch, then by sequence."""

    epoch: WholeNumber = 0
    seq: WholeNumber = 0

    def __str__(self) -> str:
        return f"{self.epoch}.{self.seq}"


# The volume as it is made, before anybody has written to it.
EMPTY: Final = Commit(0, 0)
# What the volume was filled with when it was made (`from=`), or before it had a head.
FILLED: Final = Commit(0, 1)


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """
    What the store says of a volume, under ``v/<id>/head``.

    ``committed`` is the newest commit that is known to be kept, by ``holders``;
    ``quality`` is its quality, "" if unknown; ``moment`` the one that it shares with
    other volumes' commits, "" if none is known. ``owner`` owns it in boot ``boot_id``,
    or was the last to raise the epoch; ``members`` are to keep copies. ``released_at``
    is when the last epoch that was begun was released, "" if it was not; the time is
    for people. Older versions have not always written it.
    """

    KEY: ClassVar[re.Pattern[str]] = re.compile(rf"v/{VOLUME_ID.pattern}/head")

    epoch: WholeNumber = 0
    owner: NodeIdOrNone = ""
    boot_id: LineText = ""
    phase: Phase = "idle"
    committed: Commit = EMPTY
    quality: Quality = ""
    holders: tuple[NodeId, ...] = ()
    members: tuple[NodeId, ...] = ()
    released_at: LineText = ""
    moment: LineText = ""

    @property
    def released(self) -> bool:
        """
        Whether it was released, and nobody is about to begin: nobody has newer bytes.

        Nodes that raised the epoch since, and gave up, have written nothing.
        """
        noted = self.released_at != "" or self.committed.epoch == self.epoch
        return self.phase == "idle" and noted


class CopyState(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a node knows of its own copy; each change is durable before anything follows.

    ``live_epoch``: the epoch whose owner may have changed the bytes since ``commit``, 0
    if none may. ``next_seq``: the number of its next commit; none is used twice.
    """

    promised: int = 0
    commit: Commit = EMPTY
    live_epoch: int = 0
    next_seq: int = 1

    @property
    def newest_epoch(self) -> int:
        """The newest epoch of which it has bytes."""
        return max(self.commit.epoch, self.live_epoch)


class RefusedError(Exception):
    """The rules forbid it; the fields say what stands in the way."""

    def __init__(
        self, reason: Reason, *, node: str = "", epoch: int = 0, commit: Commit = EMPTY
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.node = node
        self.epoch = epoch
        self.commit = commit


class EarlierEpoch(msgspec.Struct, frozen=True, array_like=True):
    """An `Epoch` with its number, as a later one keeps it; the first five fields."""

    number: WholeNumber
    base: Commit
    owner: NodeId
    began_at: LineText = ""
    lost: Commit | None = None
    before_released_at: LineText = ""


class Epoch(msgspec.Struct, frozen=True):
    """
    An epoch that was begun, as the store keeps it under ``v/<id>/epochs/<n>``.

    Only the first two fields decide anything. The next three are for people: when it
    began, by its owner's clock; the newer commit that nobody offered; when the epoch
    before it was released, "" if it was not. ``earlier`` are those before it, whose
    records it replaces; ``moment`` is the base's, as in the head. Records of older
    versions do not have all of them.
    """

    KEY: ClassVar[re.Pattern[str]] = re.compile(
        rf"v/{VOLUME_ID.pattern}/epochs/[0-9]{{1,20}}"
    )

    base: Commit
    owner: NodeId
    began_at: LineText = ""
    lost: Commit | None = None
    before_released_at: LineText = ""
    earlier: tuple[EarlierEpoch, ...] = ()
    moment: LineText = ""

    @property
    def at_rest(self) -> bool:
        """Whether nobody wrote to the volume as its base was made."""
        return self.before_released_at != "" or self.base.epoch == 0


@dataclass(frozen=True, slots=True)
class Lineage:
    """Every epoch that an owner has begun, by its number."""

    epochs: Mapping[int, Epoch]

    def newest(self, at: int) -> int:
        """Return the newest epoch begun up to *at*, 0 if there is none."""
        return max((each for each in self.epochs if each <= at), default=0)

    def require_known(self, epoch: int, *, at: int, node: str = "") -> None:
        """
        Raise RefusedError if *epoch*, of a copy's bytes, is newer than all up to *at*.

        So the records are older than the copy. What it has promised tells that too, but
        not for long: whoever asks for a newer promise raises the epoch and gives it up.
        """
        if epoch > self.newest(at):
            raise RefusedError("stale-epoch", node=node, epoch=epoch)

    def contains(self, commit: Commit, *, at: int) -> bool:
        """Return whether epoch *at* has grown out of *commit*."""
        epoch = self.newest(at)
        while epoch > commit.epoch:
            begun = self.epochs.get(epoch)
            # It is too old to be known, or its base is no earlier one: no proof.
            if begun is None or begun.base.epoch >= epoch:
                return False
            if begun.base.epoch == commit.epoch:
                return commit.seq <= begun.base.seq
            epoch = begun.base.epoch
        return epoch == commit.epoch

    def owners(self) -> set[str]:
        """Return the nodes that may have written to the volume."""
        return {each.owner for each in self.epochs.values()}

    def after(self, epoch: int, base: Commit, owner: str) -> Lineage:
        """Return the lineage after *owner* has begun *epoch* with *base*."""
        return Lineage({**self.epochs, epoch: Epoch(base, owner)})


class Tomb(msgspec.Struct, frozen=True, kw_only=True):
    """
    A volume that was removed; *pending* are the nodes that may have copies yet.

    What was committed, and the *bases* of epochs, tell whether a copy has bytes that
    nobody knew of. Older versions do not write them. They name members alone, although
    other nodes may have copies as well: what they wrote does not say ``all_nodes``.
    """

    KEY: ClassVar[re.Pattern[str]] = re.compile(rf"tomb/{VOLUME_ID.pattern}")
    name: VolumeName
    backend: BackendKind
    removed_at: LineText
    pending: tuple[NodeId, ...]
    all_nodes: bool = False
    committed: Commit | None = None
    bases: tuple[tuple[WholeNumber, Commit], ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """What a new owner begins with; *lost* is the newer commit that nobody offered."""

    base: Commit
    holders: tuple[str, ...]
    lost: Commit | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """The next copy state, and whether bytes of the copy must be set apart first."""

    copy: CopyState
    keep_live: bool = False
    keep_commit: bool = False
