"""Records in memory, sorted by key; threads that share a table need a lock."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Mapping

from plugin.store.base import Record

# No key begins with it: no text has this character.
_LAST = chr(0x10FFFF)


class Table:
    """Records by key and in the order of their keys, which is that of UTF-8 too."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._records = {each.key: each for each in records}
        self._keys = sorted(self._records)
        # By the first part of the keys: volumes, heads, nodes change at other times.
        self._changes: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._records)

    def get(self, key: str) -> Record | None:
        """Return the record of *key*."""
        return self._records.get(key)

    def changes(self, prefix: str) -> int:
        """Return a number that grows with each change below *prefix*, and others."""
        return self._changes[_part(prefix)]

    def keys(self, first: str, after: str) -> list[str]:
        """Return the keys from *first* to before *after*, "" for no end."""
        end = bisect_left(self._keys, after) if after else len(self._keys)
        return self._keys[bisect_left(self._keys, first) : end]

    def every(self, count: int) -> list[str]:
        """Return each key that has a multiple of *count* keys before it, but none."""
        return self._keys[count::count]

    def below(self, prefix: str) -> list[Record]:
        """Return the records whose key starts with *prefix*, sorted."""
        first = bisect_left(self._keys, prefix)
        after = bisect_left(self._keys, prefix + _LAST)
        return [self._records[key] for key in self._keys[first:after]]

    def change(self, changes: Mapping[str, Record | None]) -> None:
        """Do many *changes* at once: each alone would move all keys behind its own."""
        for key, record in changes.items():
            self._changes[_part(key)] += 1
            if record is None:
                self._records.pop(key, None)
            else:
                self._records[key] = record
        self._keys = sorted(self._records)

    def put(self, record: Record) -> None:
        """Let *record* be what its key holds."""
        self._changes[_part(record.key)] += 1
        if record.key not in self._records:
            insort(self._keys, record.key)
        self._records[record.key] = record

    def remove(self, key: str) -> None:
        """Let *key* be absent."""
        if self._records.pop(key, None) is not None:
            self._changes[_part(key)] += 1
            del self._keys[bisect_left(self._keys, key)]


def _part(key: str) -> str:
    return key.partition("/")[0]
