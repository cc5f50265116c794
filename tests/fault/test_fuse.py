"""
No change escapes the fuse, whoever makes it and by whichever call.

Crash points that are missing show nowhere else: the tests with them would still pass.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from backends.system import mounts
from backends.system.run import run
from tests.fault import test_crash_points as alone
from tests.fault import test_crash_points_apart as apart
from tests.fault import test_crash_points_cluster as cluster
from tests.fault.tracing import CHANGING, compared
from tests.fault.world import World
from tests.support.fuse import live
from tests.support.syscalls import HARMLESS

_libc = ctypes.CDLL(None, use_errno=True)
_FICLONE = 0x40049409
_AT_FDCWD = -100


def with_file(change: Callable[[int], object]) -> Callable[[Path], None]:
    """Return what opens `file` and does *change* to it."""

    def act(directory: Path) -> None:
        with (directory / "file").open("r+b") as file:
            change(file.fileno())

    return act


def listen(directory: Path) -> None:
    os.chdir(directory)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("new")


def insert(directory: Path) -> None:
    connection = sqlite3.connect(directory / "some.db", isolation_level=None)
    connection.execute("CREATE TABLE t (a)")
    connection.close()


def in_a_thread(directory: Path) -> None:
    thread = threading.Thread(target=(directory / "new").mkdir)
    thread.start()
    thread.join()


def bind(directory: Path) -> None:
    mounts.bind(directory / "below", directory / "below", suid=False)
    mounts.unmount(directory / "below")


def exchange(directory: Path) -> None:
    one, other = os.fsencode(directory / "file"), os.fsencode(directory / "below")
    assert _libc.renameat2(_AT_FDCWD, one, _AT_FDCWD, other, 2) == 0


def share(directory: Path) -> None:
    with (directory / "file").open("rb") as source:
        # No filesystem in memory can; that it was tried is enough here.
        with_file(
            lambda to: _libc.ioctl(to, ctypes.c_ulong(_FICLONE), source.fileno())
        )(directory)


# By the call that each ends in: on its own, or the one after it was opened.
CHANGES: dict[str, tuple[set[str], Callable[[Path], object]]] = {
    "os.open": ({"openat"}, lambda at: os.open(at / "new", os.O_CREAT | os.O_RDWR)),
    "os.open to cut": ({"openat"}, lambda at: os.open(at / "file", os.O_TRUNC | 1)),
    "unnamed": ({"openat"}, lambda at: os.open(at, os.O_TMPFILE | os.O_RDWR)),
    "open": ({"openat"}, lambda at: open(at / "new", "x").close()),  # noqa: PTH123
    "Path.open": ({"openat"}, lambda at: (at / "file").open("w").close()),
    "write_text": ({"openat", "write"}, lambda at: (at / "new").write_text("x")),
    "append": ({"openat"}, lambda at: (at / "file").open("a").close()),
    "touch": ({"openat"}, lambda at: (at / "new").touch()),
    "mkdir": ({"mkdir"}, lambda at: (at / "new").mkdir()),
    "mkdir in": ({"mkdirat"}, lambda at: os.mkdir("n", dir_fd=os.open(at, 0))),
    "mknod": ({"mknodat"}, lambda at: os.mknod(at / "new")),
    "pipe": ({"mknodat"}, lambda at: os.mkfifo(at / "new")),
    "socket": ({"bind"}, listen),
    "link": ({"link"}, lambda at: os.link(at / "file", at / "new")),
    "symlink": ({"symlink"}, lambda at: (at / "new").symlink_to("file")),
    "rename": ({"rename"}, lambda at: (at / "file").rename(at / "new")),
    "replace": ({"rename"}, lambda at: (at / "file").replace(at / "new")),
    "exchange": ({"renameat2"}, exchange),
    "unlink": ({"unlink"}, lambda at: (at / "file").unlink()),
    "rmdir": ({"rmdir"}, lambda at: (at / "below").rmdir()),
    "chmod": ({"chmod"}, lambda at: (at / "file").chmod(0o600)),
    "fchmod": ({"fchmod"}, with_file(lambda file: os.fchmod(file, 0o600))),
    "chown": ({"chown"}, lambda at: os.chown(at / "file", 1, 1)),
    "lchown": ({"lchown"}, lambda at: os.lchown(at / "file", 1, 1)),
    "fchown": ({"fchown"}, with_file(lambda file: os.fchown(file, 1, 1))),
    "utime": ({"utimensat"}, lambda at: os.utime(at / "file", (1, 1))),
    "truncate": ({"truncate"}, lambda at: os.truncate(at / "file", 1)),
    "ftruncate": ({"ftruncate"}, with_file(lambda file: os.ftruncate(file, 1))),
    "fallocate": ({"fallocate"}, with_file(lambda f: os.posix_fallocate(f, 0, 9))),
    "pwrite": ({"pwrite64"}, with_file(lambda file: os.pwrite(file, b"x", 0))),
    "writev": ({"writev"}, with_file(lambda file: os.writev(file, [b"x"]))),
    "pwritev": ({"pwritev2"}, with_file(lambda f: os.pwritev(f, [b"x"], 0))),
    "copy": (
        {"copy_file_range"},
        with_file(lambda f: os.copy_file_range(f, f, 1, 0, 8)),
    ),
    "sendfile": ({"sendfile"}, with_file(lambda file: os.sendfile(file, file, 0, 1))),
    "FICLONE": ({"ioctl"}, share),
    "flags": (
        {"ioctl"},
        with_file(lambda f: fcntl.ioctl(f, 0x801C581F, bytearray(28))),
    ),
    "setxattr": ({"setxattr"}, lambda at: os.setxattr(at / "file", "trusted.a", b"x")),
    "fsetxattr": ({"fsetxattr"}, with_file(lambda f: os.setxattr(f, "trusted.a", b""))),
    "mount": ({"move_mount", "umount2"}, bind),
    "commit": ({"openat", "pwrite64", "unlink"}, insert),
    "thread": ({"mkdir"}, in_a_thread),
    "program": ({"mkdir"}, lambda at: run(["mkdir", str(at / "n")], deadline_s=9)),
}


def begun(directory: Path) -> Path:
    (directory / "file").write_text("content")
    (directory / "below").mkdir()
    return directory


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_a_step(name: str, disk: Path) -> None:
    calls, act = CHANGES[name]
    assert calls <= set(live(lambda: begun(disk), act).steps)


def test_what_changes_nothing_is_no_step(disk: Path) -> None:
    def look(directory: Path) -> None:
        assert (directory / "file").read_text() == "content"
        print(sorted(directory.iterdir()))
        assert run(["ls", str(directory)], deadline_s=9).output == "below\nfile\n"
        with (directory / "file").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            os.fsync(file.fileno())

    assert live(lambda: begun(disk), look).steps == []


@pytest.mark.parametrize("sends", [False, True])
def test_what_is_sent_is_a_step_where_others_keep_it(sends: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        life = live(
            lambda: socket.create_connection(server.getsockname()),
            lambda connection: connection.sendall(b"remember"),
            sends=sends,
        )
    assert life.steps == (["sendto"] if sends else [])


@pytest.mark.parametrize("fatal_step", range(1, 5))
def test_it_dies_before_the_fatal_step_and_not_earlier(
    fatal_step: int, disk: Path
) -> None:
    def act(_: object) -> None:
        for name in "abc":
            (disk / name).mkdir()

    life = live(lambda: None, act, fatal_step=fatal_step)
    assert life.died == (fatal_step <= 3)
    assert sorted(each.name for each in disk.iterdir()) == list("abc")[: fatal_step - 1]


def test_a_program_of_ours_dies_with_us(disk: Path) -> None:
    """At a step of its own; it does not take that one either."""
    command = ["mkdir", *(str(disk / name) for name in "abc")]
    life = live(lambda: None, lambda _: run(command, deadline_s=9), fatal_step=2)
    assert life.died
    assert [each.name for each in disk.iterdir()] == ["a"]


def test_a_file_that_is_changed_in_memory_is_refused(disk: Path) -> None:
    """What is stored through a mapping cannot be stopped: such a test would lie."""
    import mmap

    def act(directory: Path) -> None:
        with (directory / "file").open("r+b") as file:
            mmap.mmap(file.fileno(), 0)[0] = 1

    with pytest.raises(AssertionError, match=r"mmap of .*/file"):
        live(lambda: begun(disk), act)


def prepared(name: str) -> Callable[[Path], None]:
    return lambda directory: alone.begin(directory, name)


USE_CASES = {
    **{
        name: (prepared(name), World, act) for name, (_, act) in alone.SCENARIOS.items()
    },
    "first start": (lambda _: None, lambda at: at, World),
    "take snapshot": (
        *(lambda at: alone.prepare(at, mounted=False), World),
        alone.take_snapshot,
    ),
    "clone": (alone.changed_since_its_snapshot, World, alone.clone),
    "restore": (alone.changed_since_its_snapshot, World, alone.restore),
    "remove snapshot": (
        *(alone.changed_since_its_snapshot, World),
        alone.remove_snapshot,
    ),
    "set apart": (
        *(lambda at: apart.prepare(at, apart.LIVE), apart.Node),
        apart.Node.set_apart,
    ),
    "discard": (apart.set_apart_already, apart.Node, apart.Node.discard),
    "first mount": (
        *(lambda at: cluster.prepare(at, written=False), cluster.start),
        cluster.first_mount,
    ),
    "next mount": (
        *(lambda at: cluster.prepare(at, written=True), cluster.start),
        cluster.next_mount,
    ),
}


@pytest.mark.parametrize("name", USE_CASES)
def test_strace_sees_no_change_that_the_fuse_does_not(
    name: str, disk: Path, tmp_path: Path
) -> None:
    prepare, start, act = USE_CASES[name]
    prepare(disk)
    found = compared(tmp_path / "strace.log", lambda: start(disk), act)
    assert found.unseen == Counter()
    assert found.imagined == Counter()
    assert found.unknown == set(), "add them to HARMLESS or CHANGING"


def test_a_call_that_is_not_wrapped_is_told(disk: Path, tmp_path: Path) -> None:
    prepare, start, act = USE_CASES["restore"]
    prepare(disk)
    hole = HARMLESS | {"renameat2"}
    found = compared(tmp_path / "log", lambda: start(disk), act, harmless=hole)
    assert found.unseen == Counter(renameat2=1)


def test_no_call_is_on_both_lists() -> None:
    assert not HARMLESS & CHANGING
