"""The shares that this node uses, each watched from its first use on."""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
from collections.abc import Mapping
from concurrent.futures import as_completed
from functools import partial
from pathlib import Path
from typing import Any, Final

from backends.base import Storage, Volume
from backends.errors import BackendError, DeadlineError, RemoraError
from backends.nfs.identity import Known
from backends.nfs.leftovers import remove_empty, sweep
from backends.nfs.options import Export, export_of
from backends.nfs.share import Share
from backends.system.aside import begun
from backends.system.clock import Deadline

log = logging.getLogger(__name__)
# What a profile may have that a marker cannot take back: set-id files count, and no
# server is asked for the path of a directory, which might be a link by then.
_OF_PROFILES: Final = {"suid": "true", "mountMode": "share"}


class Shares:
    """
    Makes a `Share` for each export; methods may be called from any thread.

    Control mounts are made below *directory*, in a part of it that is new each time;
    *node* names this node in leases; *known* says which shares are the right ones.
    """

    def __init__(self, directory: Path, *, node: str, known: Known) -> None:
        self.directory = directory
        self._own = directory / secrets.token_hex(4)
        self._swept = False
        self._node = node
        self._known = known
        self._copying: set[str] = set()
        self._shares: dict[Export, Share] = {}
        # What the profile of each wants of all mounts of its volumes.
        self._configured: dict[Export, dict[str, str]] = {}
        self._guard = threading.Lock()

    def configure(self, options: Mapping[str, str]) -> None:
        """Watch the share of a profile with complete *options* for ever."""
        self._configured[export_of(options)] = {
            key: value
            for key, value in _OF_PROFILES.items()
            if options.get(key) == value
        }
        self._get(export_of(options))

    def of(self, volume: Volume) -> Share:
        """Return the share that *volume* lives on, watched from now on."""
        return self._get(export_of(volume.options))

    def watched(self) -> list[Share]:
        """Return every share that is watched."""
        with self._guard:
            return list(self._shares.values())

    def ours(self, share: Share) -> dict[str, str]:
        """Return how this node mounts what is found on *share*."""
        return share.export.options | self._configured.get(share.export, {})

    def storages(self) -> list[Storage]:
        """Return every share that is watched, and what was found of it."""
        return [
            Storage(
                str(share.export),
                share.state.error,
                share.state.total_bytes,
                share.state.available_bytes,
                unread=share.export in self._configured and not share.was_read,
            )
            for share in self.watched()
        ]

    def find(
        self, name: str, deadline: Deadline, *, on: Volume | None
    ) -> tuple[Share, dict[str, Any]] | None:
        """
        Return the marker of volume *name* from the one share that has it, and that.

        Only the share of the volume *on* is asked, if one is given.

        Raises:
            NfsError, DeadlineError: none of those that answered has it, not all did.
            BackendError: several have it.

        """
        asked = [each for each in self.watched() if each.state.state == "ok"]
        if on is not None:
            asked = [self.of(on)]
        # Side by side: one that has just died must not use up the others' time.
        asking = {
            begun(
                partial(each.call, "find", deadline=deadline, name=name),
                name=f"find:{each.export}",
            ): each
            for each in asked
        }
        found: dict[str, tuple[Share, dict[str, Any]]] = {}
        failure: RemoraError | None = None
        try:
            for each in as_completed(asking, deadline.remaining_s()):
                try:
                    if (marker := each.result()) is not None:
                        share = asking[each]
                        found[str(share.export)] = share, marker
                except RemoraError as error:
                    failure = error
        except TimeoutError:
            failure = DeadlineError(f"'{name}' was not looked for in time")
        if failure is not None and not found:
            raise failure
        if len(found) > 1:
            raise BackendError(
                f"'{name}' is on {' and '.join(sorted(found))}",
                hint="create it with server and share of the one that is meant",
            )
        return next(iter(found.values()), None)

    def forget(self, share: Share) -> None:
        """Stop watching *share* if it was never there: its name may be misspelt."""
        if not share.proven and share.export not in self._configured:
            with self._guard:
                self._shares.pop(share.export, None)
            share.close()

    def close(self) -> None:
        """Watch nothing any more."""
        for share in self.watched():
            share.close()
        if self._own.exists():
            remove_empty(self.directory)

    def _get(self, export: Export) -> Share:
        with self._guard:
            share = self._shares.get(export)
            if share is None:
                digest = hashlib.sha256(repr(export).encode()).hexdigest()[:16]
                # Nobody but root may get at the whole share through it.
                self._own.mkdir(mode=0o700, parents=True, exist_ok=True)
                share = Share(
                    export,
                    self._own / digest,
                    node=self._node,
                    copying=self._copying,
                    known=self._known,
                )
                share.start()
                self._shares[export] = share
                self._sweep()
            return share

    def _sweep(self) -> None:
        """Once, and beside everything else: dead servers may keep it for seconds."""
        if not self._swept:
            self._swept = True
            threading.Thread(
                target=lambda: sweep(self.directory, but=self._own),
                name="nfs:leftovers",
                daemon=True,
            ).start()
