"""
What this node's filesystem cannot hold of a commit.

    <home>/unfit.json    the files that lack something here, and what

An attribute of 5 KB fits on XFS and not on ext4; a time after 2038 fits on some. One
such file must not keep the rest of its commit back. So the copy takes the commit
without that, and says so until the file is another one.

A time is as well kept as it can be if the filesystem makes the same of it when asked.
An attribute does not fit if the file came twice, and came the same twice without it.
Or it fitted on the directory that came, which was empty, and not beside the names that
ext4 may keep in a directory's inode: that is known only once the commit is ours.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import msgspec

from backends.errors import BackendError
from backends.rsync.journal.delta import Delta
from backends.rsync.journal.entries import Entry, parent, same, time_ns
from backends.system import files
from backends.system.decoding import from_json

What = Literal["attributes", "time"]
_NAME: Final = "unfit.json"
# More would be a copy of something else.
UNFIT_MAX: Final = 10_000
_SECOND_NS: Final = 10**9
_DOES_NOT_FIT: Final = (errno.ENOSPC, errno.E2BIG, errno.ERANGE)
# With so much free, it is not the disk that has no room for an attribute.
_ROOM_BYTES: Final = 1 << 20
# What every filesystem holds: ext4 with small inodes holds no more.
_TIMES_HELD: Final = range(2**31 * _SECOND_NS)


class Unfit(msgspec.Struct, frozen=True, array_like=True):
    """What the file *path* of this copy lacks."""

    path: bytes
    what: What


def alike(one: Entry, other: Entry) -> bool:
    """
    Return whether both are the same but for numbers that differ between nodes.

    Digests of content are not of what a look can see: who needs one compares it.
    """
    links = one.links if bool(one.links) == bool(other.links) else -1
    return same(one, msgspec.structs.replace(other, links=links))


def read_unfit(home: Path) -> list[Unfit]:
    """
    Return what the copy in *home* lacks.

    Nothing if the file is damaged: what does not fit is then sent twice once more.

    Raises:
        BackendError: that cannot be read.

    """
    try:
        return from_json((home / _NAME).read_bytes(), list[Unfit])
    except (FileNotFoundError, msgspec.DecodeError):
        return []
    except OSError as error:
        raise BackendError(f"{home / _NAME} cannot be read: {error}") from error


def described(unfit: Iterable[Unfit]) -> str:
    """Return *unfit* as one line for people, "" if it is nothing."""
    found = list(unfit)
    if not found:
        return ""
    what = sorted({each.what for each in found})
    return (
        f"{len(found)} files lack {' or '.join(what)} that the filesystem does not "
        f"hold: {os.fsdecode(found[0].path)!r}"
    )


def unfit_of(home: Path | None) -> str:
    """Return what the copy in *home*, if there is one, lacks, as one line."""
    return described(read_unfit(home)) if home is not None else ""


def forget_unfit(home: Path) -> None:
    """Forget it: what the copy has is the volume from now on."""
    (home / _NAME).unlink(missing_ok=True)


class Fitting:
    """
    Compares what a commit has with what is in the copy in *home*.

    *refused* has the attributes with which files came that were sent in vain, by path.
    """

    def __init__(self, home: Path, refused: dict[bytes, str] | None = None) -> None:
        self._home = home
        self._refused = {} if refused is None else refused
        self._known = {each.path: each.what for each in read_unfit(home)}
        self._found: dict[bytes, What] = {}

    def fits(self, entry: Entry, found: Entry) -> bool:
        """Return whether *found* is *entry*, but for what is known not to fit."""
        if entry.attributes != found.attributes:
            if self._known.get(entry.path) != "attributes":
                return False
            self._found[entry.path] = "attributes"
        return self._is_like(entry, found)

    def comes(self, entry: Entry, found: Entry) -> bool:
        """Return whether *found*, which has come, will not become more like *entry*."""
        if not self._is_like(entry, found):
            return False
        if entry.attributes == found.attributes:
            self._refused.pop(entry.path, None)
            return True
        if len(self._refused) > UNFIT_MAX:
            self._refused.clear()
        before = self._refused.get(entry.path)
        self._refused[entry.path] = found.attributes
        if before != found.attributes or len(self._found) >= UNFIT_MAX:
            return False
        self._found[entry.path] = "attributes"
        return True

    def note_time(self, entry: Entry) -> None:
        """Note if the time of *entry* does not fit."""
        if entry.mtime_ns in _TIMES_HELD:
            return
        off_ns = abs(self._held_ns(entry.mtime_ns) - entry.mtime_ns)
        # Fractions are no loss to tell of for each file: some filesystems have none.
        if off_ns >= _SECOND_NS and len(self._found) < UNFIT_MAX:
            self._found.setdefault(entry.path, "time")

    def keep(self, delta: Delta) -> list[Unfit]:
        """
        Note, durably, what the copy lacks with *delta*'s commit; return what is new.

        Call it before the commit is marked: applying it needs to know.
        """
        still = {} if delta.header.base is None else _untouched(self._known, delta)
        now = {**still, **self._found}
        known, self._known = self._known, now
        if now != known:
            self._write()
        return [Unfit(each, now[each]) for each in sorted(now.keys() - known)]

    @contextmanager
    def giving(self, entry: Entry) -> Iterator[None]:
        """Note, durably, if attributes that *entry* gets inside do not fit."""
        try:
            yield
        except OSError as error:
            if error.errno not in _DOES_NOT_FIT or not self._has_room():
                raise
            if self._known.get(entry.path) != "attributes":
                self._known[entry.path] = "attributes"
                self._write()

    def _has_room(self) -> bool:
        found = os.statvfs(self._home)
        return found.f_bavail * found.f_frsize >= _ROOM_BYTES

    def _write(self) -> None:
        rows = [Unfit(each, self._known[each]) for each in sorted(self._known)]
        files.write_durably(self._home / _NAME, msgspec.json.encode(rows))

    def _is_like(self, entry: Entry, found: Entry) -> bool:
        """Return whether both are the same but for attributes, and a time as held."""
        held = entry.mtime_ns == found.mtime_ns
        if not held and self._held_ns(entry.mtime_ns) != found.mtime_ns:
            return False
        if not held:
            self.note_time(entry)
        same_time = msgspec.structs.replace(
            found, mtime_ns=entry.mtime_ns, attributes=entry.attributes
        )
        return alike(entry, same_time)

    def _held_ns(self, mtime_ns: int) -> int:
        """Return what the filesystem makes of a time; on an error, the same."""
        try:
            probe = os.open(self._home, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError:
            return mtime_ns
        try:
            os.utime(probe, ns=(mtime_ns, mtime_ns))
            return time_ns(os.fstat(probe).st_mtime_ns)
        except (OSError, OverflowError):
            return mtime_ns
        finally:
            os.close(probe)


def _untouched(unfit: Mapping[bytes, What], delta: Delta) -> dict[bytes, What]:
    """Return those of *unfit* that *delta* neither names nor deletes."""
    if not unfit:
        return {}
    # The paths by all that they lie in: another node says how many deletions there are.
    within: dict[bytes, set[bytes]] = {}
    for path in unfit:
        above = path
        while above:
            within.setdefault(above, set()).add(path)
            above = parent(above)
    changed = {entry.path for entry in delta.entries() if entry.path in unfit}
    for deleted in delta.deletions():
        changed |= within.get(deleted, set())
    return {path: unfit[path] for path in unfit.keys() - changed}
