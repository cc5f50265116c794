"""What a watcher cannot see or hold: then everything may have changed."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.rsync.journal import handle_paths, watch
from backends.rsync.journal.watch import Hints, Watcher
from backends.system import fanotify
from tests.support.host import REPOSITORY, wait_until
from tests.support.namespaces import enter_private_mounts, loop_filesystem
from tests.support.watching import EVERYTHING, end_thread, make_root, ready, watching


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Iterator[Path]:
    enter_private_mounts()
    directory = tmp_path_factory.mktemp("filesystem")
    with loop_filesystem(directory, "ext4", size="64M") as mount_point:
        yield mount_point


@pytest.fixture
def root(pool) -> Path:
    return make_root(pool / f"volume-{len(list(pool.iterdir()))}")


@pytest.fixture
def watcher(pool) -> Iterator[Watcher]:
    with watching(pool) as made:
        yield made


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def queued_bytes(watcher: Watcher) -> int:
    answer = fcntl.ioctl(watcher._queue, termios.FIONREAD, b"\0" * 4)
    return struct.unpack("i", answer)[0]


def test_the_thread_empties_the_queue(watcher, root):
    watched = ready(watcher, root)

    (root / "file").write_text("x")
    wait_until(lambda: queued_bytes(watcher) == 0, timeout_s=60, what="queue empty")
    assert watched.pop_hints().paths == {b"", b"file"}


def test_a_moved_root_is_lost_until_it_is_added_again(watcher, root):
    away = root.with_name(f"{root.name}-away")
    watched = ready(watcher, root)
    root.rename(away)
    make_root(root)
    (root / "file").write_text("x")
    assert watched.pop_hints() == watched.pop_hints() == EVERYTHING
    assert watched._root.lost
    watcher.remove(watched)
    again = ready(watcher, root)
    (root / "file").write_text("y")
    assert again.pop_hints().paths == {b"file"}
    assert not again._root.lost


def test_a_removed_root_is_everything(watcher, root):
    watched = ready(watcher, root)
    root.rmdir()
    assert watched.pop_hints() == watched.pop_hints() == EVERYTHING


def test_too_many_paths_are_everything(watcher, root, monkeypatch):
    monkeypatch.setattr(handle_paths, "PATHS_MAX", 10)
    watched = ready(watcher, root)
    for number in range(9):
        (root / f"f{number}").write_text("x")
    assert len(watched.pop_hints().paths) == 10
    for number in range(11):
        (root / f"g{number}").write_text("x")
    hints = watched.pop_hints()
    assert hints.everything
    assert len(hints.paths) == 10  # they are as good as any
    (root / "g1").write_text("x")
    assert watched.pop_hints().paths == {b"g1"}


def test_a_queue_that_never_ends_is_everything(watcher, root, monkeypatch):
    monkeypatch.setattr(watch, "_READS_MAX", 2)
    end_thread(watcher)
    watched = ready(watcher, root)
    for number in range(5000):
        (root / f"{number}").touch()
    assert watched.pop_hints().everything
    # What it had not read comes later.
    while watched.pop_hints().everything:
        pass
    (root / "0").write_text("x")
    assert watched.pop_hints().paths == {b"0"}


@pytest.mark.parametrize("unlimited", [True, False])
def test_an_overflow_is_everything(pool, root, unlimited, monkeypatch):
    if not unlimited:
        limited = fanotify._QUEUE & ~fanotify._UNLIMITED_QUEUE
        monkeypatch.setattr(fanotify, "_QUEUE", limited)
    queue_max = int(Path("/proc/sys/fs/fanotify/max_queued_events").read_text())
    with watching(pool) as watcher:
        end_thread(watcher)
        watched = ready(watcher, root)
        for number in range(queue_max + 10):
            (root / f"name-{number}").symlink_to("nowhere")
            (root / f"name-{number}").unlink()
        (root / "after").write_text("x")
        hints = watched.pop_hints()
        assert hints.everything != unlimited
        assert unlimited <= (b"after" in hints.paths)
        (root / "after").write_text("y")
        assert watched.pop_hints().paths == {b"after"}


def test_hints_can_be_given_back(watcher, root):
    (root / "d").mkdir()
    watched = ready(watcher, root)
    (root / "d").rmdir()
    hints = watched.pop_hints()
    watched.give_back(hints)
    (root / "f").write_text("x")
    again = watched.pop_hints()
    assert again.paths == {b"", b"d", b"f"}
    assert again.trees == {b"d"}
    watched.give_back(again)
    assert watched.pop_hints() == again
    watched.give_back(EVERYTHING)
    (root / "f").write_text("y")
    again = watched.pop_hints()
    assert again.paths == {b"f"}
    assert again.everything
    assert watched.pop_hints() == Hints()


def test_a_root_on_another_filesystem_is_always_everything(watcher, tmp_path):
    watched = watcher.add(tmp_path)
    assert watched._root.lost
    assert watched.pop_hints() == watched.pop_hints() == EVERYTHING
    gone = watcher.add(tmp_path / "gone")
    assert gone.pop_hints() == gone.pop_hints() == EVERYTHING
    watcher.remove(watched)
    assert watcher.fault == ""


def test_a_root_of_a_twin_filesystem_is_always_everything(watcher, tmp_path):
    """Its handle has a meaning here too: it is the handle of another directory."""
    with loop_filesystem(tmp_path, "ext4", size="64M") as twin:
        watched = watcher.add(twin)
        assert watched._root.lost
        (twin / "file").write_text("x")
        assert watched.pop_hints() == watched.pop_hints() == EVERYTHING


def test_close_leaves_nothing_open(pool, root):
    before = open_descriptors()
    watcher = Watcher(pool)
    watched = ready(watcher, root)
    thread = watcher._thread
    watcher.close()
    watcher.close()
    assert thread is not None
    assert not thread.is_alive()
    assert open_descriptors() == before
    assert watcher.fault == "closed"
    assert watched.pop_hints() == watched.pop_hints() == EVERYTHING
    assert watcher.add(root).pop_hints() == EVERYTHING


def test_a_failing_queue_is_a_fault(watcher, root, monkeypatch):
    def fail(_queue: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    watched = ready(watcher, root)
    monkeypatch.setattr(watch.fanotify, "read", fail)
    assert watched.pop_hints() == watched.pop_hints() == EVERYTHING
    assert watcher.fault == "the watch has ended: Input/output error"


def test_a_handle_that_cannot_be_resolved_is_everything(watcher, root, monkeypatch):
    def fail(_handle: bytes, *, mount: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    watched = ready(watcher, root)
    with monkeypatch.context() as patch:
        patch.setattr(watch.fanotify, "open_handle", fail)
        (root / "file").write_text("x")
        assert watched.pop_hints() == EVERYTHING
    (root / "file").write_text("y")
    assert watched.pop_hints().paths == {b"file"}


def test_no_filesystem_to_watch():
    watcher = Watcher(Path("/proc"))
    assert watcher.fault.startswith("cannot watch /proc: ")
    watched = watcher.add(Path("/proc/self"))
    assert watched.pop_hints() == watched.pop_hints() == EVERYTHING
    watcher.remove(watched)
    watcher.close()
    missing = Watcher(Path("/proc/missing"))
    assert "No such file" in missing.fault
    missing.close()


@pytest.mark.parametrize("capability", ["sys_admin", "dac_read_search"])
def test_without_privilege_everything_may_have_changed(tmp_path, capability):
    if os.geteuid() != 0:
        pytest.skip("needs root")
    script = (
        "import sys; from pathlib import Path\n"
        "from backends.rsync.journal.watch import Watcher\n"
        "watcher = Watcher(Path(sys.argv[1])); w = watcher.add(Path(sys.argv[1]))\n"
        "print(watcher.fault, w.pop_hints().everything, w.pop_hints().everything)\n"
        "watcher.close()\n"
    )
    done = subprocess.run(
        [
            *("setpriv", f"--bounding-set=-{capability}", "--"),
            *(sys.executable, "-c", script, tmp_path),
        ],
        check=True,
        env={"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert "Operation not permitted True True" in done.stdout


def test_wherever_the_tests_live(tmp_path):
    """Overlay, tmpfs or a disk: a hint, or everything."""
    watcher = Watcher(tmp_path)
    watched = watcher.add(tmp_path)
    assert watched.pop_hints().everything
    (tmp_path / "file").write_text("x")
    hints = watched.pop_hints()
    assert hints.everything == bool(watcher.fault)
    assert hints.everything or hints.paths == {b"", b"file"}
    watcher.close()


def test_an_open_file_is_quiet_only_until_hints_are_taken(watcher, root):
    end_thread(watcher)
    watched = ready(watcher, root)
    with (root / "open").open("wb", buffering=0) as file:
        watched.pop_hints()
        for _ in range(3):
            file.write(b"x")
            watcher._read(1)  # as the thread does
            assert watcher._quiet_count == 1
            file.write(b"x")
            assert queued_bytes(watcher) == 0
            assert watched.pop_hints().paths == {b"open"}
            file.write(b"x")
            assert watched.pop_hints().paths == {b"open"}


def test_a_quiet_file_is_hinted_under_its_new_name(watcher, root):
    end_thread(watcher)
    watched = ready(watcher, root)
    with (root / "old").open("wb", buffering=0) as file:
        file.write(b"x")
        watcher._read(1)
        assert watcher._quiet_count == 1
        (root / "old").rename(root / "new")
        file.write(b"x")
        assert watched.pop_hints().paths == {b"", b"old", b"new"}
        file.write(b"x")
        assert watched.pop_hints().paths == {b"new"}


def test_a_quiet_file_of_one_volume_when_another_takes(watcher, root):
    end_thread(watcher)
    other = make_root(root.with_name(f"{root.name}-other"))
    mine, theirs = ready(watcher, root), ready(watcher, other)
    with (root / "open").open("wb", buffering=0) as file:
        file.write(b"x")
        assert theirs.pop_hints() == Hints()
        assert mine.pop_hints().paths == {b"", b"open"}
        file.write(b"x")
        assert theirs.pop_hints() == Hints()
        file.write(b"x")
        assert mine.pop_hints().paths == {b"open"}
        assert mine.pop_hints() == Hints()
