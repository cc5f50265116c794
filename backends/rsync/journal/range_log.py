"""
Which ranges of each large file have changed by which commit.

One small file for each, named by its path's hash, with a digest in front: what a power
failure leaves of it is whole, or is not believed. Without it the whole file is sent
once. So nothing here is flushed.

A *step* says at least all in which the file differs between any two of the commits from
``base`` to ``commit`` that another node may have. So a search that compares the newest
with an older one alone takes over what was noted of those between: what is as it was
need not be what they have. Steps that follow each other lead from older commits to the
newest.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from backends.rsync.journal.entries import Commit, Entry
from backends.rsync.journal.redo import SENT_MAX, packed, unpacked
from backends.system.decoding import NOT_DECODED, msgpack_decoder
from backends.system.ranges import Range, at_most, merged

# The oldest two are made one when there are more: that loses nothing but precision.
_STEPS_MAX: Final = 16
_DIGEST_BYTES: Final = 16
SIZE_MAX: Final = 2**63 - 1


class Step(msgspec.Struct, frozen=True, array_like=True):
    """See the module's text; ``ranges`` are packed as in a redo file."""

    base: Commit
    commit: Commit
    ranges: bytes


class _Log(msgspec.Struct, frozen=True):
    """
    ``unsearched``: the commit that was searched at last, and the one it is now.

    Of those between them either no node has the file, or steps say what they changed.
    """

    path: bytes
    steps: tuple[Step, ...] = ()
    unsearched: tuple[Commit, Commit] | None = None


class RangeLog:
    """The logs in *directory*, which is made when it is needed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def note_written(self, path: bytes, content: Commit, commit: Commit) -> None:
        """Note that *commit* wrote the file, which was searched last at *content*."""
        log = self._read(path)
        self._write(msgspec.structs.replace(log, unsearched=(content, commit)))

    def content_of(self, entry: Entry) -> Commit:
        """
        Return the commit that the file was searched at last, *entry* being what it is.

        It is that of *entry*, unless nobody has looked for ranges since an older one.
        """
        log = self._read(entry.path)
        if log.unsearched is not None and log.unsearched[1] == entry.commit:
            return log.unsearched[0]
        return entry.commit

    def is_searched(self, entry: Entry) -> bool:
        """Return whether changes of *entry*'s file are noted, and all were searched."""
        return self.has(entry.path) and self.content_of(entry) == entry.commit

    def add(
        self, path: bytes, base: Commit, commit: Commit, ranges: Sequence[Range]
    ) -> None:
        """Note where the file differs between *base* and *commit*."""
        steps = [*self._read(path).steps]
        step = Step(base, commit, packed(at_most(merged(ranges), SENT_MAX)))
        while steps and steps[-1].commit > base:
            step = _joined(steps.pop(), step)
        steps.append(step)
        if len(steps) > _STEPS_MAX:
            steps[:2] = [_joined(steps[0], steps[1])]
        self._write(_Log(path, tuple(steps)))

    def since(self, path: bytes, base: Commit, commit: Commit) -> list[Range] | None:
        """
        Return where the file has changed from *base* to *commit*, or in more places.

        None if that is not known.
        """
        found: list[Range] = []
        at = commit
        for step in reversed(self._read(path).steps):
            if at <= base:
                break
            if step.base >= commit:
                continue
            # The newest has to lead to *commit*, each other one to where the last
            # began, or beyond.
            if step.commit < at:
                return None
            found += unpacked(step.ranges, SIZE_MAX)
            at = min(at, step.base)
        return at_most(merged(found), SENT_MAX) if at <= base else None

    def leads_to(self, path: bytes, commit: Commit) -> bool:
        """Return whether it is known what *commit* has changed."""
        steps = self._read(path).steps
        return bool(steps) and steps[-1].commit == commit

    def has(self, path: bytes) -> bool:
        """Return whether changes of the file *path* are noted."""
        return self._file(path).exists()

    def reset(self, path: bytes) -> None:
        """Forget what has changed in the file *path*; from now on it is noted."""
        self._write(_Log(path))

    def remove(self, path: bytes) -> None:
        """Forget the file *path*."""
        self._file(path).unlink(missing_ok=True)

    def paths(self) -> list[bytes]:
        """Return the files that something is known of."""
        with suppress(OSError):
            logs = (_read(each) for each in self._directory.iterdir())
            return [log.path for log in logs if log is not None]
        return []

    def _file(self, path: bytes) -> Path:
        return self._directory / name_of(path)

    def _read(self, path: bytes) -> _Log:
        log = _read(self._file(path))
        return log if log is not None and log.path == path else _Log(path)

    def _write(self, log: _Log) -> None:
        """Replace the log; without room there is none, and the whole file is sent."""
        content = msgspec.msgpack.encode(log)
        target = self._file(log.path)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            temporary.write_bytes(_hash(content) + content)
            temporary.rename(target)
        except OSError:
            for each in (temporary, target):
                with suppress(OSError):
                    each.unlink()


def name_of(path: bytes) -> str:
    """Return the name of files about the file *path*."""
    return _hash(path).hex()


def _read(file: Path) -> _Log | None:
    """Return the log in *file*, None if there is none that is whole."""
    with suppress(OSError, *NOT_DECODED):
        content = file.read_bytes()
        if _hash(content[_DIGEST_BYTES:]) == content[:_DIGEST_BYTES]:
            return msgpack_decoder(_Log).decode(content[_DIGEST_BYTES:])
    return None


def _joined(one: Step, other: Step) -> Step:
    ranges = [*unpacked(one.ranges, SIZE_MAX), *unpacked(other.ranges, SIZE_MAX)]
    together = packed(at_most(merged(ranges), SENT_MAX))
    return Step(min(one.base, other.base), other.commit, together)


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
