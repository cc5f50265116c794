"""
The records as a file, and a file as the records: backup, restore, change of store.

A dump is text: the first line says of which store and when it was made, and each other
line has a record, all of one revision of the store. A value is written as JSON if that
gives the same bytes back, else as text, else as base64.

Records that end with a lease are left out: which nodes live and which hold a volume is
true only now. A store that a load has not finished holds the record `LOADING`, and
nobody may work with it.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import msgspec

from backends.base import LineText
from backends.errors import InvalidRequestError
from backends.system import clock
from backends.system.decoding import from_json
from plugin import __version__
from plugin.errors import NodeConflictError, StoreError
from plugin.joining import batches
from plugin.joining.batches import Step
from plugin.membership.loading import LOADING, refuse_loading
from plugin.membership.nodes import ALIVE, NODES, NodeRecord
from plugin.store.base import Compare, Delete, Put, Record, Store
from plugin.store.values import readable

log = logging.getLogger(__name__)
FORMAT: Final = 1
# Others may change records between our first look and the write of the marker.
_TRIES_MAX: Final = 5


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of a dump; ``cluster`` is "" for the store of a single node."""

    format: int
    cluster: str
    revision: int
    records: int
    taken_at: str
    version: str


class Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One record of a dump; exactly one of the three holds its value."""

    key: str
    json: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    text: str | None = None
    base64: str | None = None


class Marker(msgspec.Struct, frozen=True, kw_only=True):
    """The record `LOADING`: which dump is being loaded, and whether to *replace*."""

    KEY: ClassVar[re.Pattern[str]] = re.compile(LOADING)

    digest: LineText
    taken_at: LineText
    replace: bool
    started_at: LineText


@dataclass(frozen=True, slots=True)
class Dump:
    """A dump that was read and found whole; *digest* tells it from others."""

    header: Header
    values: dict[str, bytes]
    digest: str


def is_passing(record: Record) -> bool:
    """Return whether a record is true only as long as some process lives."""
    # A node that is alone has no lease, so that its locks hang on none.
    lock = record.key.startswith("v/") and record.key.endswith("/lock")
    return bool(record.lease) or lock or record.key.startswith(ALIVE)


def dump(store: Store, *, cluster: str) -> bytes:
    """
    Return a dump of all records of *store*, at one revision.

    Raises:
        StoreError: it does not answer, or a load has not finished.

    """
    refuse_loading(store)
    found, revision = store.prefix("")
    records = [each for each in found if not is_passing(each)]
    header = Header(
        format=FORMAT,
        cluster=cluster,
        revision=revision,
        records=len(records),
        taken_at=clock.now_rfc3339(),
        version=__version__,
    )
    lines: list[msgspec.Struct] = [header, *map(_line, records)]
    return b"".join(msgspec.json.encode(each) + b"\n" for each in lines)


def read(content: bytes) -> Dump:
    """
    Return the dump that *content* is.

    Raises:
        InvalidRequestError: it is none, of a newer format, or not whole.

    """
    first, *rest = content.removesuffix(b"\n").split(b"\n")
    try:
        header = from_json(first, Header)
    except msgspec.DecodeError as error:
        raise InvalidRequestError(f"this is no dump of records: {error}") from error
    if header.format != FORMAT:
        raise InvalidRequestError(
            f"the dump has format {header.format}; this Remora knows {FORMAT}",
            hint=f"load it with Remora {header.version}, which made it",
        )
    values = {}
    for number, line in enumerate(rest, start=2):
        try:
            found = from_json(line, Line)
            values[found.key] = _value(found)
        except (msgspec.DecodeError, ValueError) as error:
            raise InvalidRequestError(
                f"line {number} of the dump cannot be read: {error}"
            ) from error
    if len(values) != header.records or len(rest) != header.records:
        raise InvalidRequestError(
            f"the dump has {len(rest)} records and {header.records} were taken: it is "
            "not whole",
            hint="copy it again from where it was made",
        )
    return Dump(header, values, hashlib.sha256(content).hexdigest())


class Loading:
    """
    Makes a store's records those of a dump.

    It can be repeated after any crash: what is there already is not written again.
    """

    def __init__(self, store: Store, dump: Dump, *, replace: bool, force: bool) -> None:
        """With *replace* other records go; with *force* even while nodes live."""
        self._store = store
        self._dump = dump
        self._replace = replace
        self._force = force

    def check(self) -> int:
        """
        Return how many records would go, or be written anew.

        Raises:
            NodeConflictError: there are records, or nodes that live.
            StoreError: another load has not finished, or there is no answer.

        """
        there = {each.key: each for each in self._store.prefix("")[0]}
        self._refuse(there)
        return sum(1 for each in there.values() if self._goes(each))

    def run(self, *, before_end: Callable[[], None] = lambda: None) -> int:
        """
        Return how many records there are now, all of the dump.

        *before_end* is called when all is written, before the mark is deleted.

        Raises:
            NodeConflictError, StoreError: as `check`; what was begun can be repeated.

        """
        marker, mark = self._begin()
        guard = Compare(LOADING, marker.mod_revision)
        there = {each.key: each for each in self._store.prefix("")[0]}
        # The mark decides: a repeated load need not be told again to replace.
        for batch in batches.batches(self._steps(there, replace=mark.replace), guard):
            self._write(batch)
        before_end()
        self._write(Step((guard,), (Delete(LOADING),)))
        return len(self._dump.values)

    def _begin(self) -> tuple[Record, Marker]:
        """Return the mark of this load, written now unless it is there."""
        for _ in range(_TRIES_MAX):
            there = {each.key: each for each in self._store.prefix("")[0]}
            self._refuse(there)
            found = there.get(LOADING)
            mark = readable(found, Marker)
            if found is not None and mark is not None and self._continues(mark):
                return found, mark
            written = msgspec.json.encode(
                Marker(
                    digest=self._dump.digest,
                    taken_at=self._dump.header.taken_at,
                    replace=self._replace,
                    started_at=clock.now_rfc3339(),
                )
            )
            self._store.transact(
                [Compare(LOADING, found.mod_revision if found else 0)],
                [Put(LOADING, written)],
            )
        raise StoreError("the records keep changing", hint="stop all daemons first")

    def _continues(self, mark: Marker) -> bool:
        """Return whether *mark* was written by an earlier try of this load."""
        return mark.digest == self._dump.digest and mark.replace >= self._replace

    def _refuse(self, there: dict[str, Record]) -> None:
        """Raise an error unless the store may be changed."""
        names = [_name(each, there) for each in there if each.startswith(ALIVE)]
        if names and self._replace and not self._force:
            raise NodeConflictError(
                f"these nodes are alive: {', '.join(sorted(names))}",
                hint="stop their daemons, and wait until their leases end (15 s)",
            )
        mark = readable(there.get(LOADING), Marker)
        if self._replace or (mark is not None and self._continues(mark)):
            return
        if LOADING in there:
            taken = f" of {mark.taken_at}" if mark else ""
            raise StoreError(
                f"the load of another dump{taken} was not finished",
                hint="repeat it, or load this one with --replace",
            )
        if there:
            raise NodeConflictError(
                f"there are {len(there)} records already",
                hint="load into an empty prefix, or with --replace, which deletes them",
            )

    def _steps(self, there: dict[str, Record], *, replace: bool) -> Iterator[Step]:
        """Yield the steps that turn the records *there* into those of the dump."""
        for key, value in self._dump.values.items():
            if key not in there or there[key].value != value:
                yield Step((), (Put(key, value),))
        if replace:
            for each in there.values():
                if self._goes(each) and each.key not in self._dump.values:
                    yield Step((), (Delete(each.key),))

    def _goes(self, record: Record) -> bool:
        """Return whether a load with *replace* deletes or overwrites *record*."""
        if record.key == LOADING or record.lease:
            return False  # a living node holds it until its lease ends
        return self._dump.values.get(record.key) != record.value

    def _write(self, batch: Step) -> None:
        if not self._store.transact(batch.conditions, batch.operations).succeeded:
            raise StoreError("another load has begun meanwhile", hint="repeat this one")


def _name(key: str, there: dict[str, Record]) -> str:
    """Return the name of the node whose `ALIVE` record *key* is."""
    node_id = key.removeprefix(ALIVE)
    record = readable(there.get(NODES + node_id), NodeRecord)
    return record.name if record else node_id


def _line(record: Record) -> Line:
    """Return *record* in the form that is easiest to read and loses nothing."""
    value = record.value
    try:
        if msgspec.json.encode(msgspec.json.decode(value)) == value:
            return Line(key=record.key, json=msgspec.Raw(value))
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:
        return Line(key=record.key, text=value.decode())
    except UnicodeDecodeError:
        return Line(key=record.key, base64=base64.b64encode(value).decode("ascii"))


def _value(line: Line) -> bytes:
    """Return the value of a line; raise ValueError if there is not exactly one."""
    found: list[Any] = []
    if line.json is not msgspec.UNSET:
        found.append(bytes(line.json))
    if line.text is not None:
        found.append(line.text.encode())
    if line.base64 is not None:
        found.append(base64.b64decode(line.base64, validate=True))
    if len(found) != 1 or not line.key:
        raise ValueError("it has no key, or not one value")
    return bytes(found[0])
