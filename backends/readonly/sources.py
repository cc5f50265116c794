"""What a read-only copy is taken of; the daemon knows it, see `LastCommits`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

from backends.base import Volume
from backends.errors import BackendError
from backends.system.clock import Deadline


@dataclass(frozen=True, slots=True)
class Source:
    """The volume that is read, and the kind of its backend."""

    kind: str
    volume: Volume


@dataclass(frozen=True, slots=True)
class Tree:
    """
    A directory that has bytes of a volume, and what is known of them.

    ``commit`` is "" if they are of none; ``quality`` is what a head may say of it, and
    ``moment`` the one that it shares with other volumes of its group, or "". ``newer``
    is a commit that others have, and this node has not yet, or "". ``lacks`` is what of
    the commit this node's filesystem does not hold, or "".
    """

    directory: Path
    commit: str
    quality: str
    moment: str = ""
    newer: str = ""
    lacks: str = ""


class Sources(Protocol):
    """Which volumes there are, and what this node has of them."""

    def find(self, name: str) -> Source | None:
        """
        Return the volume *name*, None if none is known here.

        Raises:
            RemoraError: it is not ready, or that cannot be known.

        """
        ...

    def has_record(self, volume_id: str) -> bool:
        """
        Return whether there is a volume of that id, from local knowledge.

        Raises:
            RemoraError: that cannot be known.

        """
        ...

    def reading(self, name: str, deadline: Deadline) -> AbstractContextManager[Tree]:
        """
        Yield what this node has of the last commit of a volume with copies.

        No other commit comes into it meanwhile.

        Raises:
            RemoraError: this node has nothing whole of it; the text says what to do.

        """
        ...


class NoSources:
    """The `Sources` of who only reads options."""

    def find(self, name: str) -> NoReturn:
        """Refuse."""
        raise BackendError(f"nothing is known of '{name}' here")

    def has_record(self, volume_id: str) -> NoReturn:
        """Refuse."""
        self.find(volume_id)

    def reading(self, name: str, _deadline: Deadline) -> NoReturn:
        """Refuse."""
        self.find(name)
