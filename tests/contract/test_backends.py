"""What every backend must do; a new backend adds one fixture parameter."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from backends.base import Volume
from backends.errors import BackendError, InvalidRequestError, VolumeBusyError
from backends.rsync.backend import RsyncBackend
from backends.system import mounts
from backends.system.mounts import VolumeUser
from tests.contract.conftest import Bench
from tests.support.ids import id_of
from tests.support.namespaces import (
    enter_private_mounts,
    kernel_has_xfs_quota,
    loop_filesystem,
)


def test_unknown_options_are_refused_and_the_valid_ones_named(bench: Bench) -> None:
    with pytest.raises(InvalidRequestError, match="sizee") as caught:
        bench.backend.parse_options({"sizee": "1G"})
    assert "mode" in caught.value.hint
    assert "size" in caught.value.hint


def test_parsing_canonical_options_again_changes_nothing(bench: Bench) -> None:
    once = bench.backend.parse_options({"mode": "750", "size": "1g"})
    assert once == {"mode": "0750", "size": str(2**30)}
    assert bench.backend.parse_options(once) == once
    defaults = bench.backend.default_options()
    assert bench.backend.parse_options(defaults) == defaults


def test_every_method_may_be_repeated(bench: Bench) -> None:
    volume = bench.created()
    bench.backend.create(volume, deadline_s=30)
    bench.mount(volume)
    bench.mount(volume)
    bench.unmount(volume)
    bench.unmount(volume)
    bench.backend.remove(volume, deadline_s=30)
    bench.backend.remove(volume, deadline_s=30)
    bench.unmount(volume)


def test_what_this_node_has_of_its_own_is_listed(bench: Bench) -> None:
    volume, other = bench.created(), bench.created("other")
    bench.backend.remove(other, deadline_s=30)
    has_copies = bench.backend.copy_directory(volume) is not None
    assert set(bench.backend.copies()) == ({volume.id} if has_copies else set())


def test_a_volume_never_created_is_removed_already(bench: Bench) -> None:
    bench.backend.remove(bench.volume(), deadline_s=30)


def test_mounting_a_volume_without_its_bytes_is_an_error(bench: Bench) -> None:
    volume = bench.volume()
    with pytest.raises(BackendError, match="missing"):
        bench.mount(volume)
    assert not bench.target(volume).exists()


def test_a_removed_volume_cannot_be_mounted(bench: Bench) -> None:
    volume = bench.created()
    bench.backend.remove(volume, deadline_s=30)
    with pytest.raises(BackendError):
        bench.mount(volume)


def test_volumes_are_discovered_with_what_they_are(bench: Bench) -> None:
    made = {bench.created(f"v{n}", mode="0700").id for n in range(3)}
    gone = bench.created("gone")
    bench.backend.remove(gone, deadline_s=30)
    found = list(bench.reopen().discover())
    assert {each.id for each in found} == made
    assert {each.name for each in found} == {"v0", "v1", "v2"}
    assert all(each.options["mode"] == "0700" for each in found)
    assert all(each.created_at == "2026-01-02T03:04:05Z" for each in found)


def test_garbage_is_collected_once(bench: Bench) -> None:
    for number in range(3):
        volume = bench.created(f"v{number}")
        bench.backend.remove(volume, deadline_s=30)
    kept = bench.created("kept")
    assert bench.backend.collect_garbage(deadline_s=30) == 3
    assert bench.backend.collect_garbage(deadline_s=30) == 0
    assert [each.id for each in bench.backend.discover()] == [kept.id]


def test_nobody_uses_a_volume_that_only_the_daemon_mounts(bench: Bench) -> None:
    volume = bench.created()
    assert bench.backend.users(volume, bench.target(volume)) == []
    bench.mount(volume)
    assert bench.backend.users(volume, bench.target(volume)) == []
    bench.unmount(volume)


def test_status_and_health_are_told_without_storage(bench: Bench) -> None:
    volume = bench.created()
    assert bench.backend.status(volume)
    bench.backend.require_removable(volume)
    assert [each.error for each in bench.backend.storages()] == [""]
    assert bench.backend.status(bench.volume("never-made"))


def test_bytes_written_through_the_mount_are_there_at_the_next(stored: Bench) -> None:
    volume = stored.created()
    (stored.mount(volume) / "file").write_bytes(b"x" * 5000)
    stored.unmount(volume)
    assert not stored.target(volume).exists()
    stored.backend = stored.reopen()
    assert (stored.mount(volume) / "file").read_bytes() == b"x" * 5000
    stored.unmount(volume)


def test_mode_and_owner_are_those_asked_for(stored: Bench) -> None:
    mask = os.umask(0o077)
    try:
        volume = stored.created(mode="2770", uid="1234", gid="4321")
    finally:
        os.umask(mask)
    shown = stored.mount(volume).stat()
    stored.unmount(volume)
    assert (shown.st_mode & 0o7777, shown.st_uid, shown.st_gid) == (0o2770, 1234, 4321)


def test_a_mount_in_use_is_not_taken_away(stored: Bench) -> None:
    volume = stored.created()
    file = (stored.mount(volume) / "open").open("w")
    with pytest.raises(VolumeBusyError, match="in use"):
        stored.unmount(volume)
    file.write("still there")
    file.close()
    assert (stored.target(volume) / "open").read_text() == "still there"
    stored.unmount(volume)


def test_another_namespace_that_mounts_it_is_a_user(stored: Bench) -> None:
    volume = stored.created()
    target = stored.mount(volume)
    elsewhere = stored.targets / "elsewhere"
    elsewhere.mkdir()
    # Mounted elsewhere, and our own mount point's copy taken away, as in a container.
    script = f"mount --bind {target} {elsewhere} && umount {target} && echo in && cat"
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"in\n"
        users = stored.backend.users(volume, stored.target(volume))
        stored.unmount(volume)
        assert [each.mount_point for each in users] == [str(elsewhere)]
        assert [
            each.mount_point
            for each in stored.backend.users(volume, stored.target(volume))
        ] == [str(elsewhere)]
        other.communicate(timeout=10)
    assert stored.backend.users(volume, stored.target(volume)) == []


def mounted_elsewhere(bench: Bench, directory: Path) -> Path:
    """Mount *directory* at another place as well; return where."""
    elsewhere = bench.targets / "elsewhere"
    elsewhere.mkdir()
    subprocess.run(["mount", "--bind", directory, elsewhere], check=True)
    return elsewhere


def test_use_is_seen_though_the_disk_has_gone(stored: Bench) -> None:
    volume = stored.created()
    target = stored.mount(volume)
    elsewhere = mounted_elsewhere(stored, target)
    pool = Path(str(stored.backend.status(volume)["path"])).parents[2]
    hidden = pool.with_name("hidden")
    pool.rename(hidden)
    assert len(stored.backend.users(volume, target)) == 1
    stored.unmount(volume)
    with pytest.raises(BackendError, match="not mounted"):
        stored.backend.users(volume, target)
    hidden.rename(pool)
    assert len(stored.backend.users(volume, target)) == 1
    subprocess.run(["umount", elsewhere], check=True)
    assert stored.backend.users(volume, target) == []


def test_use_is_seen_while_the_pool_is_renamed(
    stored: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables of two namespaces are not read at once: they may have either path."""
    volume = stored.created()
    target = stored.mount(volume)
    elsewhere = mounted_elsewhere(stored, target)
    pool = Path(str(stored.backend.status(volume)["path"])).parents[2]
    hidden = pool.with_name("hidden")
    pool.rename(hidden)
    look = mounts.users_of_root

    def look_late(root: str, **place: Any) -> list[VolumeUser]:
        if hidden.exists():
            hidden.rename(pool)
        return look(root, **place)

    monkeypatch.setattr(mounts, "users_of_root", look_late)
    assert len(stored.backend.users(volume, target)) == 1
    subprocess.run(["umount", elsewhere], check=True)
    assert stored.backend.users(volume, target) == []


def test_a_subdirectory_mounted_elsewhere_is_use_too(stored: Bench) -> None:
    volume = stored.created()
    target = stored.mount(volume)
    (target / "sub").mkdir()
    elsewhere = mounted_elsewhere(stored, target / "sub")
    assert [
        each.mount_point for each in stored.backend.users(volume, stored.target(volume))
    ] == [str(elsewhere)]
    subprocess.run(["umount", elsewhere], check=True)
    stored.unmount(volume)


def test_a_mount_point_that_shows_other_bytes_is_corrected(stored: Bench) -> None:
    volume, other = stored.created("one"), stored.created("two")
    stored.backend.mount(other, stored.target(volume), deadline_s=30)
    (stored.target(volume) / "wrong").touch()
    assert not (stored.mount(volume) / "wrong").exists()
    stored.unmount(volume)


def test_a_pool_whose_disk_is_not_mounted_is_no_empty_pool(stored: Bench) -> None:
    volume = stored.created()
    pool = Path(str(stored.backend.status(volume)["path"])).parents[2]
    hidden = pool.parent / "hidden"
    pool.rename(hidden)
    pool.mkdir()
    for act in (
        lambda: stored.mount(volume),
        lambda: stored.backend.create(stored.volume("new"), deadline_s=30),
        lambda: stored.backend.remove(volume, deadline_s=30),
        lambda: list(stored.backend.discover()),
    ):
        with pytest.raises(BackendError, match="not mounted"):
            act()
    with pytest.raises(BackendError, match="not mounted"):
        stored.backend.require_removable(volume)
    assert "not mounted" in stored.backend.storages()[0].error
    assert list(pool.iterdir()) == []
    pool.rmdir()
    hidden.rename(pool)
    stored.mount(volume)
    stored.unmount(volume)


def test_another_nodes_pool_is_not_taken_for_ours(stored: Bench) -> None:
    volume = stored.created()
    pool = Path(str(stored.backend.status(volume)["path"])).parents[2]
    (pool / "pool.json").write_text('{"id": "another"}')
    with pytest.raises(BackendError):
        stored.backend.copies()  # or what lies elsewhere would count as gone
    with pytest.raises(BackendError, match="holds pool another"):
        stored.mount(volume)


def test_a_half_made_volume_is_not_discovered_and_can_be_made(stored: Bench) -> None:
    volume = stored.created()
    live = Path(str(stored.backend.status(volume)["path"]))
    (live.parent / "volume.json").unlink()
    assert list(stored.backend.discover()) == []
    with pytest.raises(BackendError, match="missing"):
        stored.mount(volume)
    stored.backend.create(volume, deadline_s=30)
    stored.mount(volume)
    stored.unmount(volume)


def xfs_with_quota(directory: Path) -> bool:
    """Return whether the test runs on XFS with quotas; `tests/lab` makes sure once."""
    with_quota = (directory / "xfs").exists() and kernel_has_xfs_quota()
    if "REMORA_REQUIRE_XFS_QUOTA" in os.environ and (directory / "xfs").exists():
        assert with_quota
    return with_quota


def test_size_is_enforced_or_refused(stored: Bench, tmp_path: Path) -> None:
    volume = stored.volume("small", size="16M")
    live = Path(str(stored.backend.status(volume)["path"]))
    if not (tmp_path / "btrfs").exists() and not xfs_with_quota(tmp_path):
        with pytest.raises(InvalidRequestError, match="'size'"):
            stored.backend.create(volume, deadline_s=30)
        assert not live.parent.exists()
        return
    stored.backend.create(volume, deadline_s=30)
    free = stored.created("free")
    target = stored.mount(volume)
    # O_DIRECT-free writes reach btrfs' accounting only when they are committed.
    with (
        pytest.raises(OSError, match=r"No space|quota"),
        (target / "big").open("wb") as file,
    ):
        for _ in range(24):
            file.write(b"\0" * 2**20)
            file.flush()
            os.fsync(file.fileno())
    assert (target / "big").stat().st_size <= 16 * 2**20
    stored.unmount(volume)
    other = stored.mount(free) / "big"
    other.write_bytes(b"\0" * (20 * 2**20))
    other.unlink()
    stored.unmount(free)
    stored.backend.remove(volume, deadline_s=30)
    assert stored.backend.collect_garbage(deadline_s=30) == 1


def test_size_is_refused_where_quota_is_switched_off(tmp_path: Path) -> None:
    enter_private_mounts()
    for kind in ("xfs", "btrfs"):
        with loop_filesystem(tmp_path, kind) as filesystem:
            backend = RsyncBackend(filesystem / "pool", pool_id=None)
            backend.pool.initialise()
            volume = Volume(id_of("v"), "v", {"size": "1048576"}, "")
            with pytest.raises(InvalidRequestError, match="'size'") as caught:
                backend.create(volume, deadline_s=30)
            assert "quota" in caught.value.hint
            assert list((filesystem / "pool/volumes").iterdir()) == []


def test_emptying_the_trash_survives_being_cut_short(stored: Bench) -> None:
    volume = stored.created()
    target = stored.mount(volume)
    for number in range(50):
        (target / str(number)).write_bytes(b"x")
    stored.unmount(volume)
    stored.backend.remove(volume, deadline_s=30)
    pool = Path(str(stored.backend.status(volume)["path"])).parents[2]
    (trashed,) = (pool / "trash").iterdir()
    for number in range(25):
        (trashed / "live" / str(number)).unlink()
    (trashed / "volume.json").unlink()
    assert stored.reopen().collect_garbage(deadline_s=30) == 1
    assert list((pool / "trash").iterdir()) == []


def test_what_is_mounted_inside_a_volume_is_never_deleted(stored: Bench) -> None:
    volume = stored.created()
    live = Path(str(stored.backend.status(volume)["path"]))
    pool = live.parents[2]
    (live / "sub/precious").mkdir(parents=True)
    tmpfs = ["mount", "-t", "tmpfs", "tmpfs"]
    subprocess.run([*tmpfs, live / "sub/precious"], check=True)
    with pytest.raises(VolumeBusyError, match="sub/precious"):
        stored.backend.remove(volume, deadline_s=30)
    subprocess.run(["umount", live / "sub/precious"], check=True)
    stored.backend.remove(volume, deadline_s=30)
    (trashed,) = (pool / "trash").iterdir()
    subprocess.run([*tmpfs, trashed / "live/sub/precious"], check=True)
    (trashed / "live/sub/precious/file").write_text("keep")
    assert stored.backend.collect_garbage(deadline_s=30) == 0
    assert (trashed / "live/sub/precious/file").read_text() == "keep"
    subprocess.run(["umount", trashed / "live/sub/precious"], check=True)
    assert stored.backend.collect_garbage(deadline_s=30) == 1
