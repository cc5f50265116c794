"""
Whether the share that answers is the one that is meant, as `pool.json` says of a pool.

A server whose disk is not mounted exports an empty directory, and another machine may
answer at its address. So a share has an identity, `.dvol/share.json`, and the daemon
knows which one counts. Whatever else answers is refused every call: nothing is
concluded from it, nothing is made there and nothing is removed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from backends.errors import RemoraError
from backends.nfs.errors import NfsError
from backends.system.clock import Deadline

log = logging.getLogger(__name__)
# What begins a catalogue where there is none.
_BEGINNING: Final = ("create", "begin_copy")


class Known(Protocol):
    """What the records say of shares, by `server:path`: local knowledge, at once."""

    def identity(self, share: str) -> str:
        """Return the identity that counts, "" if none is known."""
        ...

    def volumes(self, share: str) -> Sequence[tuple[str, str]]:
        """Return name and id of volumes that the share is to have; some will do."""
        ...

    def in_use(self, share: str) -> bool:
        """Return whether a record may be that of a volume on the share."""
        ...

    def note(self, share: str, identity: str, *, instead_of: str) -> str:
        """
        Note that *identity* counts from now on; return the one that does.

        Raises:
            RemoraError: it was not noted.

        """
        ...


class NothingKnown:
    """Of a node without records: whatever answers is meant."""

    def identity(self, share: str) -> str:
        """Return that none is known."""
        del share
        return ""

    def volumes(self, share: str) -> Sequence[tuple[str, str]]:
        """Return that there are none."""
        del share
        return ()

    def in_use(self, share: str) -> bool:
        """Return that it is not."""
        del share
        return False

    def note(self, share: str, identity: str, *, instead_of: str) -> str:
        """Note nothing."""
        del share, instead_of
        return identity


@dataclass(frozen=True, slots=True)
class Identified:
    """Calls to the *share* that is meant, through *ask*, and to no other."""

    share: str
    known: Known
    ask: Callable[..., Any]

    def call(self, operation: str, *, deadline: Deadline, **request: Any) -> Any:
        """
        Return the answer of the share that is meant.

        Raises:
            NfsError: OTHER, it is not the one that answers; or as `Share.call`.

        """
        meant = self._meant(operation, deadline)
        try:
            return self.ask(operation, deadline=deadline, share_id=meant, **request)
        except NfsError as error:
            may_begin = meant and operation in _BEGINNING
            is_other = error.code == "NFS-OTHER" and not self.known.in_use(self.share)
            if not (may_begin and is_other):
                raise
        # No record depends on it: it may have been made anew. A mere look says nothing,
        # for a record may be on its way.
        found = self._identify(deadline, begin=True)
        found = self.known.note(self.share, found, instead_of=meant)
        return self.ask(operation, deadline=deadline, share_id=found, **request)

    def accept(self, deadline: Deadline) -> str:
        """Let the share that answers be the one that is meant; return its identity."""
        known = self.known.identity(self.share)
        found = self._identify(deadline, begin=True)
        if self.known.note(self.share, found, instead_of=known) != found:
            raise NfsError("OTHER", "another node has accepted another one", self.share)
        return found

    def _meant(self, operation: str, deadline: Deadline) -> str:
        """
        Return the identity that the share has to have, "" if it has no catalogue yet.

        Where none is known, older versions have used it, or nobody: then it is the one
        that answers, if any of the volumes that should be on it is there.
        """
        if known := self.known.identity(self.share):
            return known
        volumes, begin = self.known.volumes(self.share), operation in _BEGINNING
        found = self._identify(deadline, begin=begin, volumes=volumes)
        try:
            return found and self.known.note(self.share, found, instead_of="")
        except RemoraError as error:
            if begin:
                raise
            log.info("which share %s is will be noted later: %s", self.share, error)
            return found

    def _identify(
        self,
        deadline: Deadline,
        *,
        begin: bool,
        volumes: Sequence[tuple[str, str]] = (),
    ) -> str:
        """Return the identity of what answers, which gets one if it has none."""
        return str(
            self.ask("identify", deadline=deadline, begin=begin, volumes=[*volumes])
        )
