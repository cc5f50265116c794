"""
What a container makes in its volume on btrfs without any capability: subvolumes.

All of it is on a filesystem of its own, in a file.
"""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.base import Destination, Volume
from backends.errors import BackendError
from backends.rsync.backend import RsyncBackend
from backends.rsync.journal import scan as scan_module
from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.rsync.journal.watch import Hints
from backends.system import btrfs
from backends.system.copying import CopyError, copy_tree
from tests.support.namespaces import enter_private_mounts, loop_filesystem

OPTIONS = {"mode": "0755", "uid": "0", "gid": "0"}
CONTAINER = ("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups")
numbers = itertools.count(1)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    enter_private_mounts()
    with loop_filesystem(tmp_path_factory.mktemp("disk"), "btrfs") as disk:
        disk.parent.chmod(0o755)
        disk.parent.parent.chmod(0o755)
        yield disk


@pytest.fixture(scope="module")
def backend(disk: Path) -> RsyncBackend:
    backend = RsyncBackend(disk / "pool", pool_id=None)
    backend.pool.initialise()
    return backend


def make(backend: RsyncBackend) -> tuple[Volume, Path]:
    """Return a new volume, and its directory, which belongs to user 1000."""
    number = next(numbers)
    volume = Volume(
        id=f"4f6f2c1e-0000-4000-8000-{number:012}",
        name=f"v{number}",
        options=OPTIONS,
        created_at="",
    )
    backend.create(volume, deadline_s=60)
    live = backend.pool.home(volume) / "live"
    os.chown(live, 1000, 1000)
    return volume, live


def nest(live: Path, path: str) -> Path:
    """Return a subvolume that a user without capabilities has made in *live*."""
    for command in (
        [*CONTAINER, "mkdir", "-p", str(Path(path).parent)],
        [*CONTAINER, "--bounding-set=-all", "btrfs", "subvolume", "create", path],
    ):
        subprocess.run(command, check=True, cwd=live, capture_output=True)
    return live / path


@pytest.mark.parametrize("path", ["nested", "deep/er/nested"])
def test_no_commit_is_made_without_what_is_in_it(
    backend: RsyncBackend, path: str
) -> None:
    volume, live = make(backend)
    (live / "plain").write_text("plain")
    journal = Journal(backend.pool.home(volume), volume.id)
    assert journal.by_snapshot
    journal.record(journal.look(EVERYTHING), (1, 1))
    nested = nest(live, path)
    (nested / "precious").write_text("x")
    for hints in (EVERYTHING, Hints(paths={b"plain"}), EVERYTHING):
        with pytest.raises(BackendError, match=f"'{path}' is a subvolume"):
            journal.look(hints)
    btrfs.delete(nested)
    nested.mkdir()
    changes = journal.look(EVERYTHING)
    assert os.fsencode(path) in {each.entry.path for each in changes.changed}
    journal.close()


def test_what_an_earlier_version_took_for_a_directory_is_seen(
    backend: RsyncBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, live = make(backend)
    nest(live, "nested")
    journal = Journal(backend.pool.home(volume), volume.id)
    with monkeypatch.context() as context:
        context.setattr(scan_module._Scan, "_is_foreign", lambda *_: False)
        journal.record(journal.look(EVERYTHING), (1, 1))
    (live / "plain").write_text("plain")
    with pytest.raises(BackendError, match="'nested' is a subvolume"):
        journal.look(EVERYTHING)
    journal.close()


def test_where_the_volume_itself_is_none_it_is_refused_too(disk: Path) -> None:
    """In a pool that came from another disk; events lead there as well."""
    home = disk / "moved"
    live = home / "live"
    live.mkdir(parents=True)
    os.chown(live, 1000, 1000)
    (live / "plain").write_text("plain")
    nest(live, "a/nested")
    journal = Journal(home, "4f6f2c1e-0000-4000-8000-000000000000")
    assert not journal.by_snapshot
    for hints in (
        EVERYTHING,
        Hints(paths={b"a/nested"}),
        Hints(paths={b"a"}, trees={b"a"}),
    ):
        with pytest.raises(BackendError, match="'a/nested' is a subvolume"):
            journal.look(hints)
    journal.close()


def test_a_mount_is_passed_over_as_ever(backend: RsyncBackend) -> None:
    volume, live = make(backend)
    (live / "mounted").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", live / "mounted"], check=True)
    try:
        journal = Journal(backend.pool.home(volume), volume.id)
        changes = scan_module.scan_all(live, journal.manifest)
        assert [each.entry.path for each in changes.changed] == [b""]
        journal.close()
    finally:
        subprocess.run(["umount", live / "mounted"], check=True)


def test_no_copy_is_made_without_what_is_in_it(
    backend: RsyncBackend, disk: Path
) -> None:
    """Nor is a snapshot, a clone or an import."""
    _, live = make(backend)
    nest(live, "a/nested")
    target = disk / "copy"
    target.mkdir()
    with pytest.raises(CopyError, match=r"subvolume cannot be copied.*\(a/nested\)"):
        copy_tree(live, Destination(target), progress=lambda _: None)


def test_trash_is_emptied_whatever_is_nested_in_it(backend: RsyncBackend) -> None:
    first, live = make(backend)
    last, _ = make(backend)
    for path in ("one", "a/two", "a/two/b/three", "a/two/four", "x" * 200 + "/five"):
        nest(live, path)
    deep = live / "a/two/b/three"
    for _ in range(30):
        deep = nest(deep, "y/z")
    (deep / "file").write_text("x")
    for each in ("a/two/b/three", "a/two"):
        command = ["btrfs", "property", "set", "-ts", str(live / each), "ro", "true"]
        subprocess.run(command, check=True)
    backend.remove(first, deadline_s=60)
    backend.remove(last, deadline_s=60)
    assert backend.collect_garbage(deadline_s=60) == 2
    assert list(backend.pool.trash.path.iterdir()) == []


def test_trash_follows_no_link_in_what_was_set_apart(backend: RsyncBackend) -> None:
    """What is discarded had been a container's own directory."""
    victim, _ = make(backend)
    volume, live = make(backend)
    theirs = backend.pool.home(victim)
    for kept in ("snapshots/before/data", "commits/1.1", "data"):
        (theirs / kept).parent.mkdir(parents=True, exist_ok=True)
        btrfs.create(theirs / kept)
        (theirs / kept / "file").write_text("x")
    for name in ("snapshots", "commits", "data"):
        command = [*CONTAINER, "ln", "-s", str(theirs / name), name]
        subprocess.run(command, check=True, cwd=live)
    (live / "quarantine").symlink_to(theirs)
    nest(live, "live")
    home = backend.pool.home(volume)
    journal = Journal(home, volume.id)
    journal.keep_apart("3.7")
    journal.close()
    backend.quarantine.discard(backend.quarantine.of(volume.id)[0])
    assert backend.collect_garbage(deadline_s=60) == 1
    assert list(backend.pool.trash.path.iterdir()) == []
    for kept in ("snapshots/before/data", "commits/1.1", "data"):
        assert (theirs / kept / "file").exists(), kept
