"""
The volume records in the store: one key each, ``volumes/<name>``.

A record that cannot be read is passed over by whoever goes through all of them. Its
volume exists all the same: `unreadable` has its name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from backends.errors import InvalidRequestError, VolumeExistsError
from backends.system.decoding import from_json
from plugin.errors import ChangedError
from plugin.model import VolumeHead, VolumeRecord
from plugin.store.base import NO_CHANGE, Change, Compare, Delete, Put, Store
from plugin.store.values import Read, Values, readable, value_of

_PREFIX: Final = "volumes/"


@dataclass(frozen=True, slots=True)
class Stored:
    """A record and the store's revision that it was read at."""

    record: VolumeRecord
    revision: int


class Catalogue:
    """Reads and changes volume records; every change is a compare-and-set."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._heads = Values(store, VolumeHead, prefix=_PREFIX)
        self._grouped = Values(store, VolumeRecord, prefix=_PREFIX)
        # The names by id, and what they were read from.
        self._names: tuple[Read[VolumeHead], Mapping[str, str]] | None = None

    def find(self, name: str) -> Stored | None:
        """Return the record of *name*, in whatever phase, from local knowledge."""
        found = self._store.get(_PREFIX + name)
        if found is None:
            return None
        return Stored(value_of(found, VolumeRecord), found.mod_revision)

    def heads(self) -> list[VolumeHead]:
        """Return the heads of every record, sorted by name, from local knowledge."""
        return list(self._heads.read().values.values())

    def unreadable(self) -> Sequence[str]:
        """Return the names of the volumes whose records cannot be read."""
        return self._heads.read().unreadable

    def of_ids(self, ids: Collection[str]) -> list[VolumeRecord]:
        """Return the records of volumes by id, sorted by name; only these are read."""
        # What other volumes' records say has changed since is no matter.
        found = self._named(self._names[1] if self._names else {}, ids)
        if missing := {*ids} - found.keys():
            found |= self._named(self.names(), missing)
        return sorted(found.values(), key=lambda each: each.name)

    def of_group(self, group: str) -> list[VolumeRecord]:
        """Return the records of the volumes of a *group*, from local knowledge."""
        clue = msgspec.json.encode(group).decode()
        found = self._grouped.read(naming=clue).values.values()
        return [each for each in found if each.options.get("group") == group]

    def limited(self) -> list[VolumeRecord]:
        """Return the records of the volumes that have a size, from local knowledge."""
        found = self._grouped.read(naming='"size":').values.values()
        return [each for each in found if "size" in each.options]

    def _named(
        self, names: Mapping[str, str], ids: Collection[str]
    ) -> dict[str, VolumeRecord]:
        """Return the records of *ids*, by id, that have the names of *names* now."""
        found = {}
        for volume_id in ids:
            if name := names.get(volume_id):
                record = readable(self._store.get(_PREFIX + name), VolumeRecord)
                if record is not None and record.id == volume_id:
                    found[volume_id] = record
        return found

    def names(self) -> Mapping[str, str]:
        """Return the name of every volume by its id."""
        read, known = self._heads.read(), self._names
        if known is None or known[0] is not read:
            names = {head.id: name for name, head in read.values.items()}
            known = self._names = read, names
        return known[1]

    def insert(self, record: VolumeRecord) -> Stored | None:
        """
        Return *record* as stored; None if the name has been taken meanwhile.

        Raises:
            VolumeExistsError: another volume has its id.

        """
        self._require_own_id(record)
        put = _put(record)
        outcome = self._store.transact([Compare(put.key, 0)], [put])
        return Stored(record, outcome.revision) if outcome.succeeded else None

    def replace(
        self, stored: Stored, record: VolumeRecord, *, also: Change = NO_CHANGE
    ) -> Stored:
        """
        Write *record* in place of *stored*, which has the same name; return it.

        *also* is done in the same transaction.

        Raises:
            ChangedError: somebody else changed it since it was read.
            VolumeExistsError: another volume has its id.

        """
        if record.id != stored.record.id:
            self._require_own_id(record)
        put = _put(record)
        outcome = self._store.transact(
            [Compare(put.key, stored.revision), *also.conditions],
            [put, *also.operations],
        )
        if not outcome.succeeded:
            raise _changed(record.name)
        return Stored(record, outcome.revision)

    def _require_own_id(self, record: VolumeRecord) -> None:
        """Raise VolumeExistsError if another volume has the id that storage told."""
        name = self.names().get(record.id, record.name)
        if name != record.name:
            raise VolumeExistsError(
                f"'{record.name}' has the id of '{name}', {record.id}, on storage",
                hint="somebody has copied one of them: create it anew",
            )

    def delete(self, stored: Stored, *, also: Change = NO_CHANGE) -> None:
        """
        Delete the record, and do *also* in the same transaction.

        Alone, the power may bring the record back, in its phase: what was begun is
        undone, or finished, once more.

        Raises:
            ChangedError: somebody else changed it since it was read.

        """
        key = _PREFIX + stored.record.name
        if not self._store.transact(
            [Compare(key, stored.revision), *also.conditions],
            [Delete(key, repeatable=True), *also.operations],
        ).succeeded:
            raise _changed(stored.record.name)


def _put(record: VolumeRecord) -> Put:
    """Return the write of *record*, or raise: what nobody can read is not written."""
    try:
        content = msgspec.json.encode(record)
        from_json(content, VolumeRecord)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise InvalidRequestError(
            f"volume '{record.name}' cannot be recorded: {error}"
        ) from error
    return Put(_PREFIX + record.name, content)


def _changed(name: str) -> ChangedError:
    return ChangedError(f"volume '{name}' was changed by another node", hint="retry")
