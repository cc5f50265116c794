"""
The watched directories with what was collected, and where file handles are in them.

The lock of the watcher guards all of it.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backends.system import fanotify

PATHS_MAX: Final = 50_000
_PATHS_SIZE_MAX: Final = 16 * 2**20
_PLACES_MAX: Final = 20_000

DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY


@dataclass(frozen=True, slots=True)
class Hints:
    """
    Where something may have changed, as paths below the root; b"" is the root itself.

    ``trees`` are those of ``paths`` at which a directory was removed, or that one was
    moved from or to. Everything that was below is gone, even if a directory is there
    again, which may have the same inode number. ``inodes`` are of files that were
    written to, maybe by a name that they do not have any more. With ``everything``
    there are more changes than all that tells.
    """

    paths: frozenset[bytes] = frozenset()
    trees: frozenset[bytes] = frozenset()
    everything: bool = False
    inodes: frozenset[int] = frozenset()


class Root:
    """
    A directory, open as *descriptor* at path *at*, and what was collected about it.

    ``lost`` is set when nothing is told about it any more. With ``full`` no further
    path is collected before the next `pop_hints`.
    """

    def __init__(self, descriptor: int = -1, at: bytes = b"") -> None:
        self.descriptor = descriptor
        self.at = at
        self.lost = descriptor < 0
        self.everything = True  # nobody knows what happened before
        self._paths: set[bytes] = set()
        self._trees: set[bytes] = set()
        self._inodes: set[int] = set()
        self._size = 0

    @property
    def full(self) -> bool:
        """Whether as many paths were collected as may be."""
        return len(self._paths) >= PATHS_MAX or self._size >= _PATHS_SIZE_MAX

    def note(self, path: bytes, *, tree: bool = False) -> None:
        """Collect *path*; see `Hints` for what a *tree* is."""
        if path not in self._paths:
            if self.full:
                self.everything = True
                return
            self._paths.add(path)
            self._size += len(path)
        if tree:
            self._trees.add(path)

    def note_file(self, inode: int) -> None:
        """Collect a file that was written to."""
        if len(self._inodes) < PATHS_MAX:
            self._inodes.add(inode)
        else:
            self.everything = True

    def pop_hints(self) -> Hints:
        """Return what was collected, and begin anew."""
        hints = Hints(
            *(frozenset(self._paths), frozenset(self._trees), self.everything),
            frozenset(self._inodes),
        )
        self._paths, self._trees, self._size = set(), set(), 0
        self._inodes = set()
        self.everything = self.lost
        return hints

    def lose(self) -> None:
        """Close it: from now on `pop_hints` says everything."""
        self.pop_hints()
        self.lost = self.everything = True
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class HandlePaths:
    """
    Where directories are, by their file handles, as the open *mount* shows them.

    A directory outside of the mount gets a path too. That path is good only for
    comparing it with that of a root, which the kernel shows in the same way.
    """

    def __init__(self, mount: int) -> None:
        self._mount = mount
        self.roots: list[Root] = []
        self._by_path: dict[bytes, list[Root]] = {}
        self._known: dict[bytes, tuple[list[Root], bytes]] = {}

    def forget(self) -> None:
        """Ask anew where each directory is: one was renamed."""
        self._known.clear()

    def add(self, path: Path) -> Root:
        """
        Return a new root for directory *path*.

        Raises:
            OSError: it is not there, or not on the mount's filesystem.

        """
        descriptor = self.open(path)
        root = Root(descriptor, fanotify.path_of(descriptor).rstrip(b"/"))
        self._keep([*self.roots, root])
        return root

    def remove(self, root: Root) -> None:
        """Close *root*, which has nothing more to say."""
        self._keep([other for other in self.roots if other is not root])
        root.lose()

    def open(self, path: Path) -> int:
        """Return a descriptor for directory *path*; as `add`."""
        directory = os.open(path, DIRECTORY)
        try:
            handle = fanotify.handle_of(directory)
            found = self.open_handle(handle)
            if not os.path.samestat(os.fstat(found), os.fstat(directory)):
                os.close(found)
                raise OSError(errno.EXDEV, f"{path} is on another filesystem")
        finally:
            os.close(directory)
        return found

    def open_handle(self, handle: bytes) -> int:
        """Return a descriptor for the directory of *handle*."""
        return fanotify.open_handle(handle, mount=self._mount)

    def check_roots(self) -> None:
        """Give up the roots that are not where they were: their paths mislead."""
        for root in self.roots:
            if fanotify.path_of(root.descriptor).rstrip(b"/") != root.at:
                self.remove(root)

    def find(self, handle: bytes) -> tuple[list[Root], bytes]:
        """
        Return the roots that the directory is in, and its path below them.

        Raises:
            OSError: nobody knows where it is.

        """
        place = self._known.get(handle)
        if place is None:
            descriptor = self.open_handle(handle)
            try:
                place = self._split(fanotify.path_of(descriptor))
            finally:
                os.close(descriptor)
            if len(self._known) >= _PLACES_MAX:
                self.forget()
            self._known[handle] = place
        return place

    def _keep(self, roots: list[Root]) -> None:
        self.roots = roots
        self._by_path = {}
        for root in roots:
            self._by_path.setdefault(root.at, []).append(root)
        self.forget()

    def _split(self, path: bytes) -> tuple[list[Root], bytes]:
        at = path
        while at and at not in self._by_path:
            at = at.rpartition(b"/")[0]
        return self._by_path.get(at, []), path[len(at) + 1 :]
