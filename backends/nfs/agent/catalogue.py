"""
The catalogue, on the share itself, so that every node that mounts it sees the same.

    .dvol/volumes/<key>.json    a volume's marker; key = uuid5 of its name
    .dvol/claims/<key>.json     which volume a directory belongs to; key = uuid5 of it
    .dvol/leases/<id>/<node>    a node that has the volume mounted, touched every 20 s
    .dvol/changing/<id>         the node that removes it or swaps its bytes just now
    .dvol/archived/, trash/     what removal leaves; .dvol/new/: files being written
    .dvol/snapshots/, copies/   see snapshots.py
    .dvol/share.json            which share this is, see identity.py

Names and directories are claimed with link(2), which has one winner on NFS, with the
whole content in place. A marker is `creating` until its directory is ready, then
`ready`, then `removing`; whoever finds one unfinished can finish it.

Every file is opened by `below.py`: its time has to be the server's, and the other nodes
must not wait for one that died with a file delegated to it. What others may have
written is read through `schema.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import uuid
from collections.abc import Callable
from contextlib import suppress

from backends.errors import one_line
from backends.nfs.agent import schema
from backends.nfs.agent.below import Below
from backends.nfs.agent.markers import MARKER_SIZE_MAX, MARKERS_MAX, TOO_MANY, Markers
from backends.nfs.agent.schema import Json
from backends.system.fanotify import HANDLE_HEADER_SIZE, NO_HANDLE, handle_of
from backends.system.regular_files import NotRegularError

# A lease that nobody touched for this long is that of a node that is gone.
LEASE_FRESH_S = 90
# A creation takes milliseconds; one that is older was cut short.
CREATION_FRESH_S = 30
# A file is written in milliseconds; what is older was left by a crash.
_WRITING_FRESH_S = 3600
# As much is done in one turn of what has no natural bound.
SOME = 1000
_LEASE_TRIES = 100
# Lines about what is damaged; one that is not told twice.
_TOLD_MAX = 1000
BASE = ".dvol"
_NAMESPACE = uuid.UUID("6f1f4b3a-61d7-5c0e-9a51-0d2f4f5c3a10")
_PARTS = (
    "volumes",
    "claims",
    "leases",
    "archived",
    "trash",
    "new",
    "snapshots",
    "changing",
    "retained",
)

# By the directory that a file is in.
_SCHEMAS: dict[str, Callable[[Json], Json]] = {
    "volumes": schema.marker,
    "claims": schema.claim,
    "changing": schema.change,
    "retained": schema.retained,
    "share.json": schema.share,
}


class Refused(Exception):  # noqa: N818 - a refusal is an answer, not a fault
    """An answer with an error code of the backend's table."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def key_of(text: str) -> str:
    """Return the file name that stands for *text* (a name can be longer than one)."""
    return f"{uuid.uuid5(_NAMESPACE, text)}.json"


class Catalogue:
    """The markers, claims and leases on the share that is at *root*."""

    def __init__(self, root: str, node: str) -> None:
        self.share = Below(root)
        self.node = node
        self.markers = Markers(
            self.share, self.path("volumes"), read=self._marker_of, tell=self._tell
        )
        self._told: set[str] = set()

    def path(self, *parts: str) -> str:
        """Return a path below `.dvol`, relative to the share."""
        return "/".join((BASE, *parts))

    def prepare(self) -> None:
        """Make `.dvol`; under root_squash others must be able to work in it too."""
        if self.share.is_directory(self.path(_PARTS[-1])):
            return
        mode = 0o700 if os.geteuid() == 0 else 0o1777
        for directory in (BASE, *map(self.path, _PARTS)):
            with suppress(FileExistsError):
                self.share.make_directory(directory, mode)
                # The server decides who we are: it may make nobody of root.
                if self.share.status(directory).st_uid != 0:
                    self.share.set_mode(directory, 0o1777)

    def read(self, *parts: str, like: str = "") -> Json | None:
        """
        Return what the file *parts* holds, None if there is none.

        It is read as one of those in *like*, if that is given.

        Raises:
            Refused: CATALOGUE, it is not what may stand in that place.

        """
        try:
            found = json.loads(self.share.read(self.path(*parts), MARKER_SIZE_MAX))
            if not isinstance(found, dict):
                raise schema.UnfitError("it is no object")
            return _SCHEMAS[like or parts[0]](found)
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError, NotRegularError) as error:
            raise Refused(
                "CATALOGUE", f"{'/'.join(parts)} is damaged: {error}"
            ) from None

    def count(self, *parts: str) -> int:
        """Return how many things are in the directory *parts*, as far as is counted."""
        try:
            return len(self.share.some_names(self.path(*parts), MARKERS_MAX))
        except FileNotFoundError:
            return 0

    def link_new(self, content: Json, *parts: str) -> bool:
        """Make the file *parts* with *content*; False if it exists already."""
        temporary = self._write_temporary(content)
        try:
            self.share.link(temporary, self.path(*parts))
        except FileExistsError:
            # The reply to our own link may have been lost: two names, then it is ours.
            return self.share.status(temporary).st_nlink == 2
        finally:
            self.share.unlink(temporary)
        return True

    def replace(self, content: Json, *parts: str) -> None:
        """Make the file *parts* hold *content*, all or nothing."""
        self.share.rename(self._write_temporary(content), self.path(*parts))

    def unlink(self, *parts: str) -> None:
        """Remove the file *parts* if it is there."""
        with suppress(FileNotFoundError):
            self.share.unlink(self.path(*parts))

    def unlink_if(self, expected: Json, *parts: str) -> None:
        """
        Remove the file *parts* if it holds *expected*; another node's newer one stays.

        Between a look and an unlink(2) it could be replaced. So it is moved away first,
        and put back if it turns out to be another.
        """
        aside = uuid.uuid4().hex
        with suppress(FileNotFoundError):
            self.share.rename(self.path(*parts), self.path("new", aside))
            if self.read("new", aside, like=parts[0]) != expected:
                with suppress(FileExistsError):
                    self.share.link(self.path("new", aside), self.path(*parts))
            self.share.unlink(self.path("new", aside))

    def _write_temporary(self, content: Json) -> str:
        self.prepare()
        path = self.path("new", uuid.uuid4().hex)
        self.write_new(path, content)
        return path

    def write_new(self, path: str, content: Json) -> None:
        """Make the file *path*, relative to the share; durably."""
        descriptor = self.share.create(path, 0o644)
        try:
            os.write(descriptor, json.dumps(content).encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def sweep_new(self) -> None:
        """
        Remove the files that a crash has left half-written.

        A file that another node is just creating has a number of that node's where its
        mtime will be: the server keeps it there to know a repeated request by. Only its
        ctime is a time. Source: RFC 1813, 3.3.8 (EXCLUSIVE); RFC 8881, 18.16.3.
        """
        if not self.count("new"):
            return
        now_s = self._server_time_s()
        for name in self.share.some_names(self.path("new"), SOME):
            path = self.path("new", name)
            with suppress(OSError):  # also a directory that somebody has put there
                if now_s - self.share.status(path).st_ctime > _WRITING_FRESH_S:
                    self.share.unlink(path)

    def marker(self, name: str) -> Json | None:
        """Return the marker of volume *name*; raises as `read`."""
        found = self.read("volumes", key_of(name))
        if found is not None and found["name"] != name:
            raise Refused("CATALOGUE", "the marker is that of another volume")
        return found

    def has_own_filesystem(self, directory: str) -> bool:
        """
        Return whether *directory* is another filesystem on the server.

        A dataset or a subvolume for each volume, for instance. No client can rename it
        or remove it. Only who opens it gets there.
        """
        with self.share.directory(directory) as opened:
            return os.fstat(opened).st_dev != self.share.status("").st_dev

    def age_s(self, *parts: str) -> float:
        """Return how long ago, on the server's clock, the file *parts* was written."""
        try:
            written_s = self.share.status(self.path(*parts)).st_mtime
        except FileNotFoundError:
            return 0.0
        return self._server_time_s() - written_s

    def scan(self) -> list[Json]:
        """
        Return every marker; what has not changed is not read again.

        Raises:
            Refused: CATALOGUE, there are more than can be looked at.

        """
        found = self.markers.all()
        if self.markers.is_cut:
            raise Refused("CATALOGUE", TOO_MANY)
        return found

    def _marker_of(self, name: str) -> Json | None:
        """Return what a look at all markers needs of the file *name*, if it is one."""
        try:
            found = self.read("volumes", name)
            if found is not None and key_of(found["name"]) != name:
                raise Refused("CATALOGUE", "it is another's marker")
        except Refused as damage:
            # The others must not suffer; whoever asks for this one is told.
            self._tell(f"{name}: {damage}")
            return None
        return None if found is None else schema.shortened(found)

    def _tell(self, line: str) -> None:
        """Print *line* for the daemon's log, once, as far as can be remembered."""
        line = one_line(line)
        if line not in self._told and len(self._told) < _TOLD_MAX:
            self._told.add(line)
            sys.stderr.write(f"{line}\n")

    # Leases: the server's clock alone counts, so nodes need not agree on the time.

    def touch_lease(self, volume_id: str) -> None:
        """
        Say that this node has the volume mounted.

        The time of the file says it. It is never opened: it might be a second name of
        somebody's file by now.
        """
        self.prepare()
        path = self.path("leases", volume_id, self.node)
        for _ in range(_LEASE_TRIES):
            with suppress(FileNotFoundError):
                self.share.renew_time(path)
                return
            with suppress(FileExistsError):
                self.share.make_directory(self.path("leases", volume_id), 0o777)
            # Another node that gives its lease back may have removed the directory.
            with suppress(FileNotFoundError, FileExistsError):
                self.write_new(path, {})
                return
        raise Refused("INUSE", "other nodes give it back all the time: retry")

    def drop_lease(self, volume_id: str) -> None:
        """Say that this node no longer has it."""
        self.unlink("leases", volume_id, self.node)
        with suppress(OSError):
            self.share.remove_directory(self.path("leases", volume_id))

    def holders(self, volume_id: str) -> list[str]:
        """Return the other nodes that hold a fresh lease."""
        try:
            names = self.share.names(self.path("leases", volume_id))
        except FileNotFoundError:
            return []
        now_s = self._server_time_s()
        fresh = []
        for name in names:
            if name == self.node:
                continue
            with suppress(FileNotFoundError):
                lease = self.share.status(self.path("leases", volume_id, name))
                if now_s - lease.st_mtime < LEASE_FRESH_S:
                    fresh.append(name)
        return fresh

    def _server_time_s(self) -> float:
        path = self._write_temporary({})
        try:
            return self.share.status(path).st_mtime
        finally:
            self.share.unlink(path)

    def identity(self, path: str) -> str:
        """
        Return what tells the directory *path* from one that replaced it.

        The inode number alone is used again at once; the file handle has its
        generation. Source: name_to_handle_at(2).
        """
        with self.share.directory(path, os.O_PATH | os.O_DIRECTORY) as directory:
            inode = os.fstat(directory).st_ino
            try:
                content = handle_of(directory)[HANDLE_HEADER_SIZE:]
            except OSError as error:
                if error.errno not in NO_HANDLE:
                    raise
                return str(inode)
            return f"{inode}-{hashlib.sha256(content).hexdigest()[:16]}"

    def may_be(self, noted: str | None, path: str) -> bool:
        """
        Return whether the directory *path* may be the one of which *noted* was noted.

        Agents that were not let ask for handles have noted the inode number alone. That
        is enough to use a directory, and not to delete it.
        """
        found = self.identity(path)
        return noted in (None, found, found.partition("-")[0])
