"""The receiving side: what is verified, and what comes of a commit that was marked."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backends.errors import BackendError
from backends.rsync.journal.manifest import Manifest
from backends.rsync.journal.outbox import fill
from backends.rsync.journal.rolling_forward import apply
from backends.rsync.journal.staging import Staging
from backends.system import quota
from backends.system.writeback import Writeback
from tests.support.fuse import NEVER, STEPS_MAX, live
from tests.support.journal_trees import (
    MemberCopy,
    acl,
    all_known,
    full,
    make_delta,
    make_everything,
    shape,
)
from tests.support.namespaces import enter_private_mounts, loop_filesystem


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source/live"
    root.mkdir(parents=True)
    make_everything(root)
    return root


def change(root: Path) -> list[bytes]:
    """Change much in *root*; return what has gone."""
    (root / "program").write_text("#!changed")
    (root / "hard").unlink()
    (root / "hard").mkdir()
    (root / "hard/new").write_text("a directory now")
    (root / "soft").unlink()
    (root / "soft").write_text("a file now")
    (root / "empty").rmdir()
    os.mkfifo(root / "empty")
    (root / "deep/er/after-acl").unlink()
    (root / "deep/er/new").write_text("new")
    os.link(root / "odd\nname \udcff", root / "deep/second")
    (root / "null").unlink()
    os.removexattr(root / "deep/er", "user.remark")
    os.utime(root / "deep", ns=(1, 2_000_000_009))
    return [b"deep/er/after-acl", b"null"]


def changes(before: Path, root: Path, outbox: Path, deletions: list[bytes]) -> None:
    """Make the incremental delta from what the tree *before* is to *root*."""
    old = shape(before)
    new = shape(root)
    changed = {path for path, each in new.items() if old.get(path) != each}
    groups = {new[path][1] for path in changed}
    known = [
        each
        for each in all_known(root)
        if each.entry.path in changed or new[each.entry.path][1] in groups
    ]
    filled = fill(root, known, outbox)
    make_delta(outbox, filled, base=(1, 1), commit=(1, 2), deletions=deletions)


def prepared(tmp_path: Path, source: Path, name: str) -> MemberCopy:
    """Return a replica that has the first commit."""
    full(source, tmp_path / "out1", commit=(1, 1))
    replica = MemberCopy(tmp_path / name)
    replica.receive(tmp_path / "out1")
    apply(replica.home, replica.manifest)
    return replica


def test_a_full_delta_makes_the_same_tree(tmp_path: Path, source: Path) -> None:
    full(source, tmp_path / "out", commit=(1, 1))
    replica = MemberCopy(tmp_path / "replica")
    (replica.live / "old/inside").mkdir(parents=True)
    (replica.live / "zzz").mkdir()
    (replica.live / "zzz/inside").write_text("in the way")
    (replica.live / "deep").symlink_to("/")
    sent = replica.receive(tmp_path / "out")
    assert b"empty" not in sent  # a directory's entry is enough
    assert apply(replica.home, replica.manifest) == (1, 1)
    assert shape(replica.live) == shape(source)
    replica.check_manifest((1, 1))
    assert replica.staging.marked() is None
    assert not (replica.home / "applying").exists()
    assert not (replica.home / "staging").exists()


def test_a_full_delta_sends_only_what_differs(tmp_path: Path, source: Path) -> None:
    replica = prepared(tmp_path, source, "replica")
    (source / "program").write_text("changed")
    kept = {known.entry.path for known in all_known(source)} - {b"program"}
    full(source, tmp_path / "out2", commit=(2, 1), kept=kept)
    (replica.live / "deep-").write_text("touched behind our back")
    sent = replica.receive(tmp_path / "out2")
    assert sent == [b"deep-", b"program"]
    apply(replica.home, replica.manifest)
    assert shape(replica.live) == shape(source)
    replica.check_manifest((2, 1))


def test_a_first_copy_takes_its_place_as_a_whole(tmp_path: Path, source: Path) -> None:
    full(source, tmp_path / "out", commit=(1, 1))
    replica = MemberCopy(tmp_path / "replica")
    replica.receive(tmp_path / "out")
    sent = replica.staging.tree().stat().st_ino
    apply(replica.home, replica.manifest)
    assert replica.live.stat().st_ino == sent
    assert shape(replica.live) == shape(source)
    replica.check_manifest((1, 1))


def test_a_first_copy_waits_for_the_disk_once(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full(source, tmp_path / "out", commit=(1, 1))
    replica = MemberCopy(tmp_path / "replica")
    replica.receive(tmp_path / "out")
    (replica.staging.tree() / "sent-ahead").write_text("old")
    flush, flushed = Writeback.flush, []

    def counted(written: Writeback) -> None:
        flush(written)
        flushed.append(written)

    monkeypatch.setattr(Writeback, "flush", counted)
    apply(replica.home, replica.manifest)
    assert len(flushed) == 1
    assert shape(replica.live) == shape(source)


def test_a_directory_with_a_limit_keeps_it(tmp_path: Path) -> None:
    enter_private_mounts()
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "program").write_text("content")
    os.link(source / "program", source / "deep/second")
    (source / "deep/soft").symlink_to("program")
    os.mkfifo(source / "pipe")
    with loop_filesystem(tmp_path, "xfs") as shared:
        replica = MemberCopy(shared / "replica")
        # As `quota.limit` does, on kernels without quotas too.
        subprocess.run(["chattr", "-p", "70000", "+P", replica.live], check=True)
        number = replica.live.stat().st_ino
        full(source, tmp_path / "out", commit=(1, 1))
        replica.receive(tmp_path / "out")
        sent = (replica.staging.tree() / "program").stat().st_ino
        apply(replica.home, replica.manifest)
        assert replica.live.stat().st_ino == number
        # A copy would need room for both within the limit.
        assert (replica.live / "program").stat().st_ino == sent
        shown = subprocess.run(
            ["lsattr", "-pd", replica.live / "program"],
            check=True,
            capture_output=True,
            text=True,
        )
        assert shown.stdout.split()[0] == "70000"
        assert quota.is_limited(replica.live)
        assert shape(replica.live) == shape(source)
        replica.manifest.close()


def test_an_incremental_delta_makes_the_same_tree(tmp_path: Path, source: Path) -> None:
    replica = prepared(tmp_path, source, "replica")
    deletions = change(source)
    changes(replica.live, source, tmp_path / "out2", deletions)
    sent = replica.receive(tmp_path / "out2")
    assert b"sparse" not in sent
    assert apply(replica.home, replica.manifest) == (1, 2)
    assert shape(replica.live) == shape(source)
    assert replica.manifest.commit() == (1, 2)


def test_a_volume_that_is_a_subvolume_gets_copies(tmp_path: Path, source: Path) -> None:
    enter_private_mounts()
    with loop_filesystem(tmp_path, "btrfs") as shared:
        (shared / "replica").mkdir()
        live = shared / "replica/live"
        subprocess.run(["btrfs", "-q", "subvolume", "create", live], check=True)
        os.setxattr(live, "system.posix_acl_default", acl(user=7))
        replica = prepared(tmp_path, source, "btrfs/replica")
        assert live.stat().st_dev != live.parent.stat().st_dev
        assert shape(live) == shape(source)
        replica.check_manifest((1, 1))
        deletions = change(source)
        changes(live, source, tmp_path / "out2", deletions)
        replica.receive(tmp_path / "out2")
        apply(replica.home, replica.manifest)
        assert shape(live) == shape(source)
        replica.manifest.close()


def test_a_commit_only_counts_with_its_marker(tmp_path: Path, source: Path) -> None:
    full(source, tmp_path / "out", commit=(1, 1))
    replica = MemberCopy(tmp_path / "replica")
    with pytest.raises(BackendError, match="no commit to apply"):
        apply(replica.home, replica.manifest)
    replica.receive(tmp_path / "out")
    with pytest.raises(BackendError, match="has to be applied, not removed"):
        replica.staging.clear()
    assert list(replica.live.iterdir()) == []


def test_a_delta_for_another_base_is_refused(tmp_path: Path, source: Path) -> None:
    replica = prepared(tmp_path, source, "replica")
    filled = fill(source, all_known(source), tmp_path / "out2")
    make_delta(tmp_path / "out2", filled, base=(1, 0), commit=(1, 2))
    with pytest.raises(BackendError, match="a full one is needed"):
        replica.receive(tmp_path / "out2")


def test_entries_need_a_directory_to_be_in(tmp_path: Path, source: Path) -> None:
    replica = prepared(tmp_path, source, "replica")
    (source / "new").mkdir()
    (source / "new/file").write_text("x")
    known = [each for each in all_known(source) if each.entry.path == b"new/file"]
    filled = fill(source, known, tmp_path / "out2")
    make_delta(tmp_path / "out2", filled, base=(1, 1), commit=(1, 2))
    with pytest.raises(BackendError, match="not there"):
        replica.receive(tmp_path / "out2")
    known = [each for each in all_known(source) if each.entry.path == b"deep/er/file"]
    filled = fill(source, known, tmp_path / "out2")
    make_delta(
        *(tmp_path / "out2", filled),
        base=(1, 1),
        commit=(1, 2),
        deletions=[b"deep"],
    )
    with pytest.raises(BackendError, match="not there"):
        replica.receive(tmp_path / "out2")


def wrong_content(tree: Path) -> None:
    (tree / "program").write_text("longer than it was")


def wrong_owner(tree: Path) -> None:
    os.chown(tree / "pipe", 1, 1)


def wrong_link(tree: Path) -> None:
    (tree / "hard").unlink()
    os.link(tree / "sparse", tree / "hard")


def one_name_too_many(tree: Path) -> None:
    os.link(tree / "hard", tree / "surplus")


def directory_for_file(tree: Path) -> None:
    (tree / "program").unlink()
    (tree / "program/inside").mkdir(parents=True)


def link_for_directory(tree: Path) -> None:
    (tree / "deep/er").rename(tree / "elsewhere")
    (tree / "deep/er").symlink_to("../elsewhere")


@pytest.mark.parametrize(
    "spoil",
    [
        *(wrong_content, wrong_owner, wrong_link, one_name_too_many),
        *(directory_for_file, link_for_directory),
    ],
)
def test_what_was_not_sent_right_is_asked_for_again(
    spoil: Callable[[Path], None], tmp_path: Path, source: Path
) -> None:
    full(source, tmp_path / "out", commit=(1, 1))
    replica = MemberCopy(tmp_path / "replica")
    sent = replica.receive(tmp_path / "out")
    replica.staging.unmark()
    spoil(replica.staging.tree())
    with replica.staging.delta() as delta:
        missing = replica.staging.missing(delta, replica.manifest)
        assert missing
        assert set(missing) < set(sent)
        # Of a file with several names all or none.
        names = {b"deep/er/file", b"hard", b"zzz"}
        assert names & set(missing) in (set(), names)


def dies(home: Path, fatal_step: int, *, renames: bool) -> bool:
    """Apply in a child that dies at *fatal_step*; return whether it died."""

    def act(_: None) -> None:
        if not renames:
            forbid_moving_in()
        assert apply(home, Manifest(home / "manifest.db")) == (1, 2)

    return live(lambda: None, act, fatal_step=fatal_step).died


def forbid_moving_in() -> None:
    """Have nothing of staging renamed into live, as if that were a subvolume."""
    rename = os.rename

    def refusing(old: Any, new: Any, **where: Any) -> None:
        here = old
        if "src_dir_fd" in where:
            here = Path(f"/proc/self/fd/{where['src_dir_fd']}").readlink()
        if "/staging" in str(here):
            raise OSError(18, "Invalid cross-device link")
        rename(old, new, **where)

    os.rename = refusing


@pytest.mark.parametrize("kind", ["first", "full", "incremental"])
@pytest.mark.parametrize("renames", [True, False])
def test_a_kill_at_any_step_changes_nothing(
    kind: str, renames: bool, tmp_path: Path, source: Path
) -> None:
    replica = (
        MemberCopy(tmp_path / "first")
        if kind == "first"
        else prepared(tmp_path, source, "first")
    )
    deletions = change(source)
    if kind == "incremental":
        changes(replica.live, source, tmp_path / "out2", deletions)
    else:
        full(source, tmp_path / "out2", commit=(1, 2))
    replica.receive(tmp_path / "out2")
    # It was sent ahead, and has gone before the commit was made.
    (replica.staging.tree() / "deep/sent-ahead").mkdir(parents=True, exist_ok=True)
    (replica.staging.tree() / "sent-ahead").write_text("old")
    replica.manifest.close()
    wanted = shape(source)
    for step in range(1, STEPS_MAX):
        # The first commit and what is in staging, each time anew.
        home = tmp_path / f"try{step}"
        subprocess.run(["cp", "-a", replica.home, home], check=True, timeout=60)
        died = dies(home, step, renames=renames)
        # And once more after it, on the same way.
        if died and Staging(home).marked() is not None:
            dies(home, step // 2 + 1, renames=renames)
        if Staging(home).marked() is not None:
            assert not dies(home, NEVER, renames=True)
        tried = MemberCopy(home)
        assert tried.staging.marked() is None
        tried.staging.clear()
        assert shape(tried.live) == wanted
        assert tried.manifest.commit() == (1, 2)
        tried.manifest.close()
        if not died:
            print(f"{kind}: {step - 1} fatal steps tried", file=sys.stderr)
            assert step > 20
            return
    pytest.fail(f"still dying at step {STEPS_MAX}")
