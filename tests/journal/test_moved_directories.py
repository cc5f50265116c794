"""Whatever directories are moved where, events lead to all that has changed."""

from __future__ import annotations

import os
import random
import shutil
from contextlib import closing, suppress
from pathlib import Path

from backends.rsync.journal.manifest import Manifest
from backends.rsync.journal.scan import scan_all, scan_paths
from tests.support.journal_trees import bare
from tests.support.namespaces import enter_private_mounts, loop_filesystem
from tests.support.watching import ready, watching

NAMES = ("a", "b", "a/a", "a/b", "b/a", "a/b/a", "b/a/b")
ROUNDS = 60


def change(root: Path, chance: random.Random) -> None:
    """Do something to the tree, or have the filesystem refuse it."""
    one, other = (root / each for each in chance.sample(NAMES, 2))
    away = root.with_name("away")
    with suppress(OSError):
        match chance.randrange(8):
            case 0:
                (one / "file").write_text(str(chance.random()))
            case 1:
                one.mkdir()
                (one / "file").touch()
            case 2:
                shutil.rmtree(one)
            case 3:
                one.rename(away)
            case 4:
                away.rename(one)
            case 5:
                (away / "file").write_text(str(chance.random()))  # no event tells
            case _:
                one.rename(other)


def test_events_and_a_walk_come_to_the_same(tmp_path: Path) -> None:
    enter_private_mounts()
    chance = random.Random(7)
    with loop_filesystem(tmp_path, "ext4", size="64M") as mount_point:
        root = mount_point / "root"
        root.mkdir()
        with (
            watching(mount_point) as watcher,
            closing(Manifest(tmp_path / "hinted")) as hinted,
            closing(Manifest(tmp_path / "walked")) as walked,
        ):
            watched = ready(watcher, root)
            for number in range(1, ROUNDS):
                hints = watched.pop_hints()
                assert not hints.everything
                paths = hints.paths if number > 1 else {b"", *map(os.fsencode, NAMES)}
                found = scan_paths(root, hinted, paths, trees=hints.trees)
                whole = scan_all(root, walked)
                for manifest, each in ((hinted, found), (walked, whole)):
                    manifest.record(each.changed, each.deleted, commit=(1, number))
                    manifest.touch(each.touched)
                assert bare(hinted.all()) == bare(walked.all())
                for _ in range(chance.randrange(1, 8)):
                    change(root, chance)
