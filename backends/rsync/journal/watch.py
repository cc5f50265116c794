"""
Which paths of a volume may have changed, as the kernel tells it: hints, no proof.

One fanotify mark covers the filesystem that the pool lives on, so that it does not
matter through which mount of which namespace somebody writes. An event names its
directory by a file handle; where that is now is asked when the event is read.

What no event tells, so that the caller scans everything now and then:

- stores through mmap(2), and writes with io_submit(2) to a file opened with O_DIRECT,
  until the file is closed; a database may keep it open for months;
- the other names of a file with several: a hint is about the name that was used, and
  linking or unlinking one name says nothing about the rest; of writes to a file its
  inode is told as well, on XFS and ext4;
- the content of a btrfs snapshot that somebody makes inside a volume.

Where fanotify cannot be used, every `pop_hints` says that everything may have changed:
right, but slow. So it does for a watched directory that was moved; what is at its old
path now has to be added again.

A watcher keeps its filesystem busy: close it before an unmount.
"""

from __future__ import annotations

import errno
import os
import select
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from backends.rsync.journal.handle_paths import DIRECTORY, HandlePaths, Hints, Root
from backends.system import fanotify

__all__ = ["Hints", "Watched", "Watcher"]

# One read is about a thousand events. Who takes hints must not wait for ever for a
# queue that fills as fast as it is read; and not long for the thread.
_READS_MAX: Final = 200
_READS_MAX_THREAD: Final = 20
_QUIET_MAX: Final = 1_000
# Between two looks of the thread; what happens often to one file is merged meanwhile.
_PAUSE_MS: Final = 500
_JOIN_S: Final = 10.0
_WRITTEN: Final = fanotify.MODIFY | fanotify.CLOSE_WRITE


class Watched:
    """The watch over the directory *path*; `Watcher.add` makes it."""

    def __init__(
        self, path: Path, root: Root, lock: threading.Lock, drain: Callable[[], None]
    ) -> None:
        self.path = path
        self._root = root
        self._lock = lock
        self._drain = drain

    def pop_hints(self) -> Hints:
        """
        Return what may have changed since the last call, and begin anew.

        All that had happened when it was called is in this result or an earlier one.
        """
        with self._lock:
            if not self._root.lost:
                self._drain()
            return self._root.pop_hints()

    def give_back(self, hints: Hints) -> None:
        """Let the next `pop_hints` return *hints* too: they could not be followed."""
        with self._lock:
            self._root.everything |= hints.everything
            for path in hints.paths:
                self._root.note(path, tree=path in hints.trees)
            for inode in hints.inodes:
                self._root.note_file(inode)


class Watcher:
    """
    The watch over the filesystem that directory *path* lives on, with its thread.

    ``fault`` says why nothing can be seen, "" if it can.
    """

    def __init__(self, path: Path) -> None:
        self.fault = ""
        self._lock = threading.Lock()
        self._roots: dict[Watched, Root] = {}
        self._quiet_count = 0
        self._queue = self._mount = -1
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread: threading.Thread | None = None
        try:
            self._mount = os.open(path, DIRECTORY)
            self._handle_paths = HandlePaths(self._mount)
            os.close(self._handle_paths.open(path))  # handles work, and we may use them
            self._queue = fanotify.open_queue()
            fanotify.mark_filesystem(self._queue, self._mount)
        except OSError as error:
            self._fail(f"cannot watch {path}: {error.strerror}")
        else:
            self._thread = threading.Thread(
                target=self._run, name="journal:watch", daemon=True
            )
            self._thread.start()

    def add(self, path: Path) -> Watched:
        """
        Return a new watch over directory *path*; no watched directory holds another.

        One that is not on the filesystem, or not there, may always have changed.
        """
        with self._lock:
            root = Root()
            if not self.fault:
                with suppress(OSError):
                    root = self._handle_paths.add(path)
            watched = Watched(path, root, self._lock, self._drain)
            self._roots[watched] = root
            return watched

    def remove(self, watched: Watched) -> None:
        """End the watch *watched*; from now on everything may have changed."""
        with self._lock:
            root = self._roots.pop(watched, None)
            if root is not None and not root.lost:
                self._handle_paths.remove(root)

    def close(self) -> None:
        """End all watches and the thread."""
        thread, self._thread = self._thread, None
        if thread is not None:
            os.eventfd_write(self._stop, 1)
            thread.join(_JOIN_S)
        with self._lock:
            self._fail(self.fault or "closed")
            if self._stop >= 0:
                os.close(self._stop)
                self._stop = -1

    def _fail(self, fault: str) -> None:
        self.fault = fault
        for root in self._roots.values():
            root.lose()
        for descriptor in (self._queue, self._mount):
            if descriptor >= 0:
                os.close(descriptor)
        self._queue = self._mount = -1

    def _run(self) -> None:
        """Keep the kernel's queue short while nobody takes hints."""
        news, end = select.poll(), select.poll()
        news.register(self._stop, select.POLLIN)
        news.register(self._queue, select.POLLIN)
        end.register(self._stop, select.POLLIN)
        emptied = True
        while not end.poll(_PAUSE_MS if emptied else 0):
            news.poll()
            with self._lock:
                if self.fault:
                    return
                emptied = self._read(_READS_MAX_THREAD)

    def _drain(self) -> None:
        """Read all that the queue holds, then be told of every file again."""
        if not self._read(_READS_MAX):
            self._note_everything()
        if self._quiet_count and not self.fault:
            self._quiet_count = 0
            try:
                fanotify.ignore_nothing(self._queue)
            except OSError as error:
                self._fail(f"the watch has ended: {error.strerror}")

    def _read(self, reads_max: int) -> bool:
        """Return whether the queue is empty now, or will never be read again."""
        try:
            self._handle_paths.check_roots()
            for _ in range(reads_max):
                content = fanotify.read(self._queue)
                if not content:
                    return True
                if all(root.full for root in self._handle_paths.roots):
                    self._note_everything()
                    # There may be renames in what is not parsed.
                    self._handle_paths.forget()
                    continue
                for event in fanotify.parse(content):
                    self._note(event)
        except OSError as error:
            self._fail(f"the watch has ended: {error.strerror}")
            return True
        return False

    def _note(self, event: fanotify.Event) -> None:
        on_directory = bool(event.mask & fanotify.ON_DIRECTORY)
        renamed = on_directory and bool(event.mask & fanotify.MOVED)
        if renamed:
            self._handle_paths.forget()
        if not event.handle:  # an overflow, or what we do not understand
            self._handle_paths.forget()
            self._note_everything()
            return
        try:
            roots, directory = self._handle_paths.find(event.handle)
        except OSError as error:
            # A directory that was deleted has been deleted from another one: that is
            # an event too, and the name there stands for all that was below. A file
            # may have other names elsewhere.
            if error.errno == errno.ESTALE:
                _note_file(event, self._handle_paths.roots)
            else:
                self._note_everything()
            return
        # Both names of a moved directory are an event each. One above may have been
        # moved since: that is an event too, and all below it is looked at.
        tree = renamed or (on_directory and bool(event.mask & fanotify.DELETE))
        _note_file(event, roots)
        for root in roots:
            if event.name == b".":
                root.note(directory)
            else:
                path = directory + b"/" + event.name if directory else event.name
                root.note(path, tree=tree)
                if event.mask & fanotify.NAME_CHANGED:
                    root.note(directory)
        if roots and event.mask & _WRITTEN == fanotify.MODIFY:
            self._quieten(event)

    def _quieten(self, event: fanotify.Event) -> None:
        """
        Have no more events of writes to a file that is open, until hints are taken.

        Each costs its writer some microseconds, and the file is hinted already. So is
        every name that it is given meanwhile.
        """
        if self._quiet_count >= _QUIET_MAX or event.name == b".":
            return
        with suppress(OSError), ExitStack() as stack:
            directory = self._handle_paths.open_handle(event.handle)
            stack.callback(os.close, directory)
            fanotify.ignore_writes(self._queue, directory, event.name)
            self._quiet_count += 1

    def _note_everything(self) -> None:
        for root in self._handle_paths.roots:
            root.everything = True


def _note_file(event: fanotify.Event, roots: Iterable[Root]) -> None:
    for root in roots if event.inode else ():
        root.note_file(event.inode)
