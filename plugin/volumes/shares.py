"""
Which share is the right one: ``shares/<server>:<path>`` has its identity.

All nodes of a cluster know the same one, so that a node for which another server
answers concludes nothing from what it sees there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Final

import msgspec

from backends.base import LineText
from plugin.errors import ChangedError
from plugin.model import VolumeId, VolumeRecord
from plugin.store.base import Compare, Put, Store
from plugin.store.values import value_of
from plugin.volumes.catalogue import Catalogue

_PREFIX: Final = "shares/"
# One of them that is there is enough to know a share by.
_TOLD_MAX: Final = 1000


class ShareRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The identity of a share, as `.dvol/share.json` on it has it."""

    KEY: ClassVar[re.Pattern[str]] = re.compile(rf"{_PREFIX}(?P<share>.+)")

    share: LineText
    id: VolumeId


@dataclass(frozen=True, slots=True)
class ShareRecords:
    """What the store knows of shares; see `backends.nfs.identity.Known`."""

    store: Store
    catalogue: Catalogue

    def identity(self, share: str) -> str:
        """Return the identity that counts, "" if none is known; or StoreError."""
        found = self.store.get(_PREFIX + share)
        return value_of(found, ShareRecord).id if found else ""

    def volumes(self, share: str) -> Sequence[tuple[str, str]]:
        """Return name and id of volumes that were made on the share."""
        made = ((x.name, x.id) for x in self.on(share) if x.phase == "ready")
        return [*islice(made, _TOLD_MAX)]

    def in_use(self, share: str) -> bool:
        """Return whether there is a record, or may be, of a volume on the share."""
        begun = (each for each in self.on(share) if each.phase != "creating")
        return bool(self.catalogue.unreadable() or next(begun, None))

    def note(self, share: str, identity: str, *, instead_of: str) -> str:
        """
        Note that *identity* counts, if none does or *instead_of*; return which does.

        Raises:
            StoreError: the store did not answer.
            ChangedError: another node has noted one just now.

        """
        content = msgspec.json.encode(ShareRecord(share=share, id=identity))
        put = Put(_PREFIX + share, content)
        # If another node is first, what it has noted is here after the first attempt.
        for _ in range(2):
            stored = self.store.get(put.key)
            known = value_of(stored, ShareRecord).id if stored else ""
            if known not in ("", instead_of) or known == identity:
                return known
            before = Compare(put.key, stored.mod_revision if stored else 0)
            if self.store.transact([before], [put]).succeeded:
                return identity
        raise ChangedError(f"share {share} was noted by another node", hint="retry")

    def on(self, share: str) -> Iterator[VolumeRecord]:
        """Yield the records of volumes on the share, whatever their phase."""
        for record in self.catalogue.of_ids(self.catalogue.names()):
            options = record.options
            if options.get("mountMode") != "direct" and (
                f"{options.get('server')}:{options.get('share')}" == share
            ):
                yield record
