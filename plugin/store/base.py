"""
The store's interface: where records live, shaped like etcd's.

Keys are text, values bytes. Every successful transaction that writes raises the
store's revision, and each record knows the revision of its last change, which
is what transactions compare. So its callers are the same on one node (SQLite) and in
a cluster (etcd). What only etcd has, leases and watches, is not part of the interface.

Reads answer from this node's own durable knowledge, at once, whatever else is down;
`refresh` waits until that knowledge is as new as the call. A transaction is decided by
the store itself, so acting on an old read can fail, but not harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol


@dataclass(frozen=True, slots=True)
class Record:
    """A key's value; ``mod_revision`` is the store's revision of its last change."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition: *key* was last changed at *mod_revision*; 0 means it is absent."""

    key: str
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Put:
    """A write; with *lease*, the key goes when that lease ends."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """
    A removal; an absent key is no error.

    One that is *repeatable* may be lost with the power: who finds the record there
    again does the same with it again.
    """

    key: str
    repeatable: bool = False


Operation = Put | Delete


@dataclass(frozen=True, slots=True)
class Change:
    """Operations and their conditions, to become part of another transaction."""

    conditions: tuple[Compare, ...] = ()
    operations: tuple[Operation, ...] = ()


NO_CHANGE: Final = Change()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a transaction did; *revision* is the store's after it."""

    succeeded: bool
    revision: int


@dataclass(frozen=True, slots=True)
class Event:
    """One change seen by a watch; *record* is None where *key* was deleted."""

    key: str
    revision: int
    record: Record | None


class CompactedError(Exception):
    """The history that a watch asked for is gone: read the prefix again."""


class Store(Protocol):
    """See the module's text."""

    def get(self, key: str) -> Record | None:
        """Return the record of *key* from local knowledge."""
        ...

    def prefix(self, prefix: str) -> tuple[list[Record], int]:
        """Return the records whose key starts with *prefix*, sorted; and a revision."""
        ...

    def version(self, prefix: str) -> int:
        """
        Return a number that is another one after each change below *prefix*.

        *prefix* has the whole first part of its keys; other changes may count, too.
        """
        ...

    def refresh(self, deadline_s: float) -> None:
        """
        Return when local knowledge holds all that was committed before this call.

        Raises:
            StoreError: the store did not answer in time.

        """
        ...

    def transact(
        self, conditions: Sequence[Compare], operations: Sequence[Operation]
    ) -> Outcome:
        """
        Do all *operations* durably if all *conditions* hold, else nothing.

        Raises:
            StoreError: the store did not answer, or a lease has ended.

        """
        ...

    def close(self) -> None:
        """Let go of the store; calls after it raise StoreError."""
        ...
