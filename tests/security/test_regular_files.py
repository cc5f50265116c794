"""What is opened in a tree that others write to: regular files, and nothing else."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.system import regular_files
from backends.system.copy_file import FileCopier
from backends.system.regular_files import NotRegularError, open_regular
from tests.support.leases import leased

TRIES = 3000


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Yield the open directories `source` and `target`."""
    opened = []
    for name in ("source", "target"):
        (tmp_path / name).mkdir()
        opened.append(os.open(tmp_path / name, os.O_RDONLY))
    yield opened[0], opened[1]
    for each in opened:
        os.close(each)


@pytest.mark.parametrize("kind", ["device", "pipe", "link", "directory", "socket"])
def test_nothing_else_is_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "it"
    (tmp_path / "file").write_text("x")
    if kind == "device":
        os.mknod(path, 0o20666, os.makedev(1, 3))
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("file")
    elif kind == "directory":
        path.mkdir()
    else:
        os.mknod(path, 0o140666)
    with pytest.raises(NotRegularError):
        open_regular(str(path))


def test_a_file_that_becomes_a_pipe_stops_nobody(
    tmp_path: Path, ends: tuple[int, int]
) -> None:
    """To open a pipe that nobody writes to would wait for ever."""
    source, target = ends
    (tmp_path / "source/file").write_text("x")
    os.mkfifo(tmp_path / "source/pipe")
    stop = threading.Event()

    def swap() -> None:
        names = [str(tmp_path / "source" / name) for name in ("file", "pipe", "spare")]
        while not stop.is_set():
            for one, two in ((0, 2), (1, 0), (2, 1)):
                os.rename(names[one], names[two])  # noqa: PTH104 - quicker
            time.sleep(0.0001)  # or on a busy machine the file is never met

    swapping = threading.Thread(target=swap)
    swapping.start()
    copied = 0
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits"))
    signal.alarm(60)
    try:
        for _ in range(TRIES):
            try:
                status = os.stat("file", dir_fd=source, follow_symlinks=False)
            except FileNotFoundError:
                continue
            copied += FileCopier().copy("file", status, source=source, target=target)
            (tmp_path / "target/file").unlink(missing_ok=True)
    finally:
        signal.alarm(0)
        stop.set()
        swapping.join()
    assert 0 < copied < TRIES


def test_who_holds_a_lease_is_told_and_the_file_is_copied(
    tmp_path: Path, ends: tuple[int, int]
) -> None:
    source, target = ends
    path = tmp_path / "source/file"
    path.write_text("held")
    with leased(path):
        assert FileCopier().copy("file", path.stat(), source=source, target=target)
    assert (tmp_path / "target/file").read_text() == "held"


def test_a_lease_that_is_kept_stops_nobody(
    tmp_path: Path, ends: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel takes it after 45 seconds; a container may have thousands."""
    monkeypatch.setattr(regular_files, "_LEASE_PATIENCE_S", 0.1)
    file = tmp_path / "source/file"
    file.write_text("x")
    with leased(file, kept=True):
        signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits"))
        signal.alarm(20)
        try:
            with pytest.raises(BlockingIOError, match="holds a lease"):
                FileCopier().copy("file", file.stat(), source=ends[0], target=ends[1])
        finally:
            signal.alarm(0)
    assert not (tmp_path / "target/file").exists()
