"""
Records as values of one kind.

A record may be unreadable: a fault or a person has spoilt it, or a newer Remora wrote
it. Who needs that one gets an error. Who goes through many passes it over, and it is
told once: one record must not stop the work with the others. It is there all the same,
and nobody may take it for absent where something is destroyed because nothing is there.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Generic, Protocol, TypeVar

import msgspec

from backends.system.decoding import from_json
from plugin.errors import RecordsError, StoreError
from plugin.store.base import Record, Store

log = logging.getLogger(__name__)


class RecordKind(Protocol):
    """
    What is decoded from a record: a `msgspec.Struct`.

    Its fields have forms and bounds. *KEY* is the form of its key, whose named groups
    are fields: no record may say that it is another's.
    """

    KEY: ClassVar[re.Pattern[str]]


Kind = TypeVar("Kind", bound=RecordKind)
# The revisions of unreadable records that were told, by key; if they are many, again.
_told: Final[dict[str, int]] = {}
_TOLD_MAX: Final = 1000


def value_of(record: Record, kind: type[Kind]) -> Kind:
    """
    Return the value of *record*.

    Raises:
        StoreError: it cannot be read.

    """
    try:
        return _decoded(record, kind)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise RecordsError(
            f"record {record.key} cannot be read: {error}",
            hint="if a newer Remora wrote it, update this node; else mend the record "
            "with etcdctl, or restore a dump",
        ) from error


def _decoded(record: Record, kind: type[Kind]) -> Kind:
    value = from_json(record.value, kind)
    key = kind.KEY.fullmatch(record.key)
    if key is None or any(
        getattr(value, field) != said for field, said in key.groupdict().items()
    ):
        raise ValueError("its key is another one's")
    return value


def readable(record: Record | None, kind: type[Kind]) -> Kind | None:
    """Return the value of *record*, None if there is none or none that can be read."""
    if record is None:
        return None
    try:
        return value_of(record, kind)
    except StoreError as error:
        if _told.get(record.key) != record.mod_revision:
            if len(_told) >= _TOLD_MAX:
                _told.clear()
            _told[record.key] = record.mod_revision
            log.warning("passed over: %s", error)
        return None


@dataclass(frozen=True, slots=True)
class Read(Generic[Kind]):
    """Values by name, sorted, and the names of records that cannot be read."""

    values: Mapping[str, Kind]
    unreadable: Sequence[str]


class Values(Generic[Kind]):
    """
    The values of all keys from *prefix* to *suffix*, by what stands between them.

    A record is decoded when it has changed. Threads may share it: at worst, two that
    meet decode the same.
    """

    def __init__(
        self, store: Store, kind: type[Kind], *, prefix: str, suffix: str = ""
    ) -> None:
        self._store = store
        self._kind = kind
        self._prefix = prefix
        self._suffix = suffix
        # With each value what tells whether its record has changed; the record itself
        # would take more memory than the value.
        self._decoded: dict[str, tuple[int, Kind | None]] = {}
        # What was read last, and of which version of these records.
        self._last: tuple[int, str, Read[Kind]] | None = None

    def read(self, *, naming: str = "") -> Read[Kind]:
        """Return the values; with *naming*, only of the records that contain it."""
        version, last = self._store.version(self._prefix), self._last
        if last is not None and last[:2] == (version, naming):
            return last[2]
        clue, suffix = naming.encode(), self._suffix
        before, decoded = self._decoded, {}
        for record in self._store.prefix(self._prefix)[0]:
            if not record.key.endswith(suffix) or clue not in record.value:
                continue
            mark = hash((record.mod_revision, record.value))
            known = before.get(record.key)
            if known is None or known[0] != mark:
                known = (mark, readable(record, self._kind))
            decoded[record.key] = known
        self._decoded = decoded
        begin, end = len(self._prefix), -len(suffix) or None
        values, unreadable = {}, []
        for key, (_, value) in decoded.items():
            if value is None:
                unreadable.append(key[begin:end])
            else:
                values[key[begin:end]] = value
        found = Read(values, unreadable)
        self._last = (version, naming, found)
        return found
