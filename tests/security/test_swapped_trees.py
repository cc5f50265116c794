"""
Containers that change their tree under what copies it: links, and kept leases.

What lies beside the volume stands for the node's own disk, and is never to be read.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from backends.errors import BackendError
from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.system.copying import CopyError, Destination, copy_tree
from tests.support.journal_trees import VOLUME
from tests.support.peers import COMMAND_DEADLINE_S, PeerNode
from tests.support.peers import VOLUME as SENT_VOLUME

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD, _EXCHANGE, _IN_OPEN = -100, 2, 0x20
PUBLIC, SECRET = "what anybody may read", "what nobody else reads"
NAMES = [b"d", b"d/file", b"d/sub", b"d/sub/file", b"e"]
COPIES = 10
# It keeps its lease whatever the kernel says, for as long as the kernel lets it.
KEEPER = """
import fcntl, signal, sys
file = open(sys.argv[1], "r+b")
signal.signal(signal.SIGIO, signal.SIG_IGN)
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print(flush=True)
sys.stdin.read()
"""


def exchange(one: Path, other: Path) -> None:
    names = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other))
    if _libc.renameat2(*names, _EXCHANGE) != 0:
        raise OSError(ctypes.get_errno(), "cannot exchange", str(one))


def traps(live: Path, link: str) -> None:
    """Make in *live* a directory, a link to be in its place, and what link leads to."""
    (live / "d/sub").mkdir(parents=True)
    host = live.parent / "host"
    (host / "sub").mkdir(parents=True)
    for name in ("file", "sub/file"):
        (live / "d" / name).write_text(PUBLIC)
        (host / name).write_text(SECRET)
        # rsync takes a file of the same size and time for the same.
        os.utime(live / "d" / name, ns=(0, 0))
    (live / "e").symlink_to(link.format(host=host))


def texts(directory: Path) -> set[str]:
    """Return what is in the files below *directory* that are no links' or random."""
    return {
        each.read_text()
        for each in directory.rglob("file")
        if each.is_file() and not any(up.is_symlink() for up in (each, *each.parents))
    }


# What an rsync does that follows a directory which has become a link.
FOLLOWS = "until [ -L /source/d ]; do :; done; cat /source/d/file /source/d/sub/file"


@pytest.mark.parametrize("link", ["{host}", "../host", "../source/../host"])
@pytest.mark.parametrize("instead", ["", f"cat /source/a/big | wc -c; {FOLLOWS}"])
def test_a_tree_that_is_sent_while_directories_become_links(
    nodes: tuple[PeerNode, PeerNode], link: str, instead: str
) -> None:
    """Before 3.5.0 rsync follows them; in its jail there is nothing they lead to."""
    first, second = nodes
    live = first.directory / "source"
    traps(live, link)
    (live / "a").mkdir()
    (live / "a/big").write_bytes(os.urandom(16 << 20))
    first.ssh.connect(second.record(), second.address)
    command = first.ssh.rsync_tree_command(
        second.record(), second.address, source=live, volume=SENT_VOLUME, epoch=5
    )
    if instead:
        request = json.loads(command[-1])
        command[-1] = json.dumps(request | {"command": ["sh", "-c", instead]})
    with exchanged_when_read(live):
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_DEADLINE_S,
            check=False,
        )
    assert (live / "d/file").read_text() == SECRET
    if instead:
        assert done.stdout.startswith(f"{16 << 20}\n")
        assert "No such file" in done.stderr
    else:
        staging = second.staging.directory / "tree"
        assert (staging / "a/big").read_bytes() == (live / "a/big").read_bytes()
        assert texts(staging) <= {PUBLIC}
    assert SECRET not in done.stdout


@contextmanager
def exchanged_when_read(live: Path) -> Iterator[None]:
    """Exchange the directory and the link as soon as a file before them is opened."""
    watch = _libc.inotify_init1(os.O_CLOEXEC)
    assert _libc.inotify_add_watch(watch, os.fsencode(live / "a/big"), _IN_OPEN) > 0

    def container() -> None:
        os.read(watch, 4096)
        exchange(live / "d", live / "e")

    waiting = threading.Thread(target=container, daemon=True)
    waiting.start()
    yield
    waiting.join(COMMAND_DEADLINE_S)
    os.close(watch)


@contextmanager
def swapping(live: Path) -> Iterator[None]:
    """Exchange the directory and the link all the time, as fast as that goes."""
    script = (
        "import ctypes, os, sys; os.chdir(sys.argv[1])\n"
        "call = ctypes.CDLL(None).renameat2\n"
        f"while True: call({_AT_FDCWD}, b'd', {_AT_FDCWD}, b'e', {_EXCHANGE})"
    )
    with subprocess.Popen([sys.executable, "-c", script, live]) as process:
        try:
            yield
        finally:
            process.kill()


@pytest.mark.parametrize("link", ["{host}", "../host"])
def test_a_tree_that_is_copied_while_directories_become_links(
    tmp_path: Path, link: str
) -> None:
    live = tmp_path / "live"
    traps(live, link)
    copied = 0
    with swapping(live):
        for number in range(COPIES):
            target = tmp_path / f"copy{number}"
            target.mkdir()
            try:
                copy_tree(live, Destination(target), progress=lambda _: None)
                copied += 1
            except CopyError as error:
                assert os.strerror(errno.ENOTDIR) in error.cause
            assert texts(target) <= {PUBLIC}
    assert copied


@pytest.mark.parametrize("link", ["{host}", "../host"])
def test_a_commit_while_directories_become_links(tmp_path: Path, link: str) -> None:
    live = tmp_path / "live"
    traps(live, link)
    packed = 0
    with swapping(live):
        for number in range(COPIES):
            with closing(Journal(tmp_path, VOLUME)) as journal:
                try:
                    changes = journal.look(EVERYTHING)
                    journal.record(changes, (1, number + 1))
                    package = journal.pack(None, only=NAMES)
                    packed += 1
                    assert texts(package.directory) <= {PUBLIC}
                except BackendError as error:
                    assert os.strerror(errno.ENOTDIR) in error.cause
    assert packed


@contextmanager
def leased(*files: Path) -> Iterator[None]:
    keepers = [
        subprocess.Popen(
            [sys.executable, "-c", KEEPER, each],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for each in files
    ]
    for each in keepers:
        assert each.stdout is not None
        assert each.stdout.readline() == b"\n"
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits for the kernel"))
    signal.alarm(40)  # less than the kernel takes for one
    try:
        yield
    finally:
        signal.alarm(0)
        for each in keepers:
            each.kill()
            each.communicate()


def test_leases_that_are_kept_hold_nobody(tmp_path: Path) -> None:
    """The copy and the commit fail at once, and say by which file; later they do."""
    live = tmp_path / "live"
    live.mkdir()
    files = [live / name for name in ("a", "b", "c")]
    for each in files:
        each.write_text(PUBLIC)
    (target := tmp_path / "copy").mkdir()
    with closing(Journal(tmp_path, VOLUME)) as journal:
        journal.record(journal.look(EVERYTHING), (1, 1))
        with leased(*files):
            with pytest.raises(CopyError, match=r"holds a lease on it .*\(a\)"):
                copy_tree(live, Destination(target), progress=lambda _: None)
            with pytest.raises(CopyError, match=r"holds a lease on it .*a$"):
                journal.pack(None, only=[b"a", b"c"])
        (target / "a").unlink(missing_ok=True)
        copy_tree(live, Destination(target), progress=lambda _: None)
        assert (target / "c").read_text() == PUBLIC
        assert (
            journal.pack(None, only=[b"a", b"c"]).directory / "tree/c"
        ).read_text() == PUBLIC
