"""
What a copy holds at one path: everything that has to be the same on every node.

Paths are bytes, relative to the volume's directory, without "." and ".."; the
directory itself is the empty path. Contents are not part of an entry: the commit that
wrote them last stands for them, and whoever changes them here changes the ctime.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from typing import Final, Literal

import msgspec

from backends.system.attributes import is_copied
from backends.system.beneath import Beneath
from backends.system.clock import wall_ns

# The epoch and the sequence within it; the newer one is the greater.
Commit = tuple[int, int]
UNWRITTEN: Final = (0, 0)
DIGEST_BYTES: Final = 16  # of a file's content
Kind = Literal["file", "directory", "link", "pipe", "socket", "character", "block"]
_KINDS: Final[dict[int, Kind]] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character",
    stat.S_IFBLK: "block",
}
_NONE: Final = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EPERM})
# No file has this ctime, so it counts as changed at the next look.
DOUBTED: Final = 0
# Writes within one tick of the clock leave the same ctime. A tick takes up to 10 ms,
# longer while a virtual machine stands still, and one or two seconds on filesystems
# without fractions.
_TICK_NS: Final = 10**8
_COARSE_TICK_NS: Final = 2 * 10**9
# A write moves the ctime when it begins. What it stores behind somebody who reads, no
# other ctime tells of. One through the page cache is waited for by who looks for holes
# (ext4_llseek), but a direct one takes what a slow disk does. Who doubts for longer
# sends a large file once more that was written just before the last commit.
WRITE_NS: Final = 2 * 10**9
_TIME_MAX_NS: Final = 2**63 - 1
_PATH_LENGTH_MAX: Final = 4095  # PATH_MAX, limits.h
_NAME: Final = rb"(?!\.{1,2}(?:/|\Z))[^/\0]{1,255}"
_PATH: Final = re.compile(rb"(?:%b(?:/%b)*)?" % (_NAME, _NAME))


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """
    One name in a volume.

    ``size`` is 0 but for files, ``device`` but for device nodes. ``links`` is equal for
    all names of one file within a manifest, and 0 for a file with one name.
    ``attributes`` is a digest of the extended ones, ACLs and capabilities among them;
    "" is none. ``commit`` is the one that wrote this last, `UNWRITTEN` if that is not
    known: two files of one path and commit have the same content. ``content`` is a
    digest of that in some entries of a delta, else b""; see `kept_files.py`.
    """

    path: bytes
    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0
    device: int = 0
    target: bytes = b""
    links: int = 0
    attributes: str = ""
    commit: Commit = UNWRITTEN
    content: bytes = b""


class Known(msgspec.Struct, frozen=True):
    """
    An entry with what tells on this node that nobody has touched it since.

    ``ctime_ns`` is `DOUBTED` where it could not tell that. The file seems to have the
    same content since commit ``alike_since``, where that is older than the entry's:
    that is a guess, and nothing is believed for it.
    """

    entry: Entry
    inode: int
    ctime_ns: int
    alike_since: Commit = UNWRITTEN


def look(name: bytes, *, directory: int, path: bytes) -> Known | None:
    """
    Return what *name* in the open *directory* is now, as entry *path*.

    None if it has gone, also while we looked.
    """
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        kind = _KINDS[stat.S_IFMT(status.st_mode)]
        target = b""
        if kind == "link":
            target = os.readlink(name, dir_fd=directory)
        digest = _attributes(name, directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.EINVAL:  # a link no more: another thing came instead
            return None
        raise
    entry = Entry(
        path=path,
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=time_ns(status.st_mtime_ns),
        size=status.st_size if kind == "file" else 0,
        device=status.st_rdev if kind in ("character", "block") else 0,
        target=target,
        links=status.st_ino if kind != "directory" and status.st_nlink > 1 else 0,
        attributes=digest,
    )
    return Known(entry, status.st_ino, status.st_ctime_ns)


def look_at(tree: Beneath, path: bytes) -> Known | None:
    """Return what *path* in *tree* is now, None if it is not there."""
    found = tree.find(path)
    return look(found[1], directory=found[0], path=path) if found else None


def recounted(tree: Beneath, known: Iterable[Known]) -> list[Known]:
    """
    Return those of *known*, in *tree*, whose attributes are not those recorded.

    The version before counted some that belong to a filesystem.
    """
    found = []
    for each in known:
        now = look_at(tree, each.entry.path)
        if now and now.entry.attributes != each.entry.attributes:
            attributes = now.entry.attributes
            entry = msgspec.structs.replace(each.entry, attributes=attributes)
            found.append(msgspec.structs.replace(each, entry=entry))
    return found


def same(one: Entry, other: Entry) -> bool:
    """Return whether both say the same of the path, whichever commits wrote them."""
    return one == msgspec.structs.replace(other, commit=one.commit, content=one.content)


def seem_alike(one: Known, other: Known) -> bool:
    """Return whether both may be one file with the same content."""
    looks = [
        (each.inode, entry.kind, entry.size, entry.mtime_ns, bool(entry.links))
        for each in (one, other)
        for entry in (each.entry,)
    ]
    return one.entry.kind == "file" and looks[0] == looks[1]


def led_on(row: Known | None, known: Known) -> Known:
    """Return *known*, with since when its content seems to be that of *row*."""
    if row is None or not seem_alike(row, known):
        return known
    since = row.entry.commit if row.alike_since == UNWRITTEN else row.alike_since
    return msgspec.structs.replace(known, alike_since=since)


def untouched(known: Known, status: os.stat_result) -> bool:
    """Return whether nothing at *known*'s path has changed since, as *status* says."""
    entry = known.entry
    one_name = entry.kind == "directory" or status.st_nlink == 1
    return (
        known.inode == status.st_ino
        and known.ctime_ns == status.st_ctime_ns
        and entry.mtime_ns == time_ns(status.st_mtime_ns)
        and entry.mode == stat.S_IMODE(status.st_mode)
        and entry.kind == _KINDS[stat.S_IFMT(status.st_mode)]
        and (entry.kind != "file" or entry.size == status.st_size)
        and (entry.links == 0) == one_name
    )


def certain(known: Known, begun_ns: int, *, is_read: bool) -> Known:
    """
    Return *known*, its ctime `DOUBTED` if a write after *begun_ns* may leave the same.

    *begun_ns* is a wall time from before the file was looked at. If it *is_read*, and
    not cloned, writes that had begun by then may go on. A ctime of the future is
    certain: the clock was set back since, and the next write has another one.
    Source: git, Documentation/technical/racy-git.txt.
    """
    if known.entry.kind != "file":
        return known  # its entry says it all
    ctime_ns = certain_ns(known.ctime_ns, begun_ns, is_read=is_read)
    return msgspec.structs.replace(known, ctime_ns=ctime_ns)


def certain_ns(ctime_ns: int, begun_ns: int, *, is_read: bool) -> int:
    """Return the ctime of a file, or `DOUBTED`; see `certain`."""
    tick_ns = _TICK_NS if ctime_ns % 10**9 else _COARSE_TICK_NS
    doubted_ns = max(tick_ns, WRITE_NS) if is_read else tick_ns
    is_young = begun_ns - doubted_ns < ctime_ns <= wall_ns() + tick_ns
    return DOUBTED if is_young else ctime_ns


def time_ns(any_ns: int) -> int:
    """Return a time that 64 bits can hold; those after 2262 are all the same."""
    return max(-_TIME_MAX_NS, min(any_ns, _TIME_MAX_NS))


def is_path(path: bytes) -> bool:
    """Return whether *path* may name an entry: relative, normal, nothing above it."""
    return len(path) <= _PATH_LENGTH_MAX and _PATH.fullmatch(path) is not None


def parent(path: bytes) -> bytes:
    """Return the directory that *path* is in; the root's is the root."""
    return path.rpartition(b"/")[0]


def is_below(path: bytes, directories: set[bytes]) -> bool:
    """Return whether *path* lies below one of *directories*."""
    while path and directories:
        path = parent(path)
        if path in directories:
            return True
    return False


def topmost(paths: Iterable[bytes]) -> Iterator[bytes]:
    """Return *paths*, in their order, parents first, without what is below others."""
    seen: set[bytes] = set()
    for path in paths:
        if not is_below(path, seen):
            seen.add(path)
            yield path


def _attributes(name: bytes, directory: int) -> str:
    # There is no *at() call for extended attributes; the descriptor's path in /proc
    # leads to the directory itself, whoever renames or replaces what is above it.
    path = f"/proc/self/fd/{directory}/".encode() + name
    try:
        keys = sorted(filter(is_copied, os.listxattr(path, follow_symlinks=False)))
        if not keys:
            return ""
        digest = hashlib.sha256()
        for key in keys:
            value = os.getxattr(path, key, follow_symlinks=False)
            digest.update(f"{key}\0{len(value)}\0".encode() + value)
    except OSError as error:
        if error.errno == errno.ENODATA:  # removed meanwhile; the next look will tell
            return "changing"
        if error.errno not in _NONE:
            raise
        return ""
    return digest.hexdigest()[:32]
