"""A volume with `readonly_copy` is the last commit of another one, to be read."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from tests.protocol.node import wait_until
from tests.support.copies import live, wait_held, wait_same
from tests.support.journal_trees import make_everything, shape
from tests.support.namespaces import enter_private_mounts, loop_filesystem
from tests.support.owners import WAIT_S, Owner, Records, pair_on

Make = Callable[..., Owner]
NAME, COPY = "data", "data-backup"
_READ = (
    "import os, sys, time; os.chdir(sys.argv[1]); print(flush=True); time.sleep(600)"
)


@pytest.fixture(scope="module", params=["ext4", "xfs", "btrfs"])
def disk(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    enter_private_mounts()
    directory = tmp_path_factory.mktemp("disk")
    with loop_filesystem(directory, request.param, size="1G") as found:
        yield found


@pytest.fixture
def pair(disk: Path, tmp_path: Path, make_owner: Make) -> tuple[Owner, Owner]:
    """Return two nodes of one cluster with pools on a filesystem of each kind."""
    return pair_on(disk, tmp_path.name, make_owner)


@pytest.fixture
def two(make_owner: Make) -> tuple[Owner, Owner]:
    """Return two nodes of one cluster."""
    return make_owner("alpha"), make_owner("beta")


def written(alpha: Owner, beta: Owner, records: Records) -> str:
    """Return the id of a volume that alpha writes to and beta has; both know a copy."""
    volume_id = alpha.create(NAME, interval="1s")
    beta.wait_known(NAME)
    alpha.mount_at_last(NAME)
    make_everything(live(alpha, volume_id))
    wait_held(records, volume_id, alpha, beta)
    wait_same(alpha, beta, volume_id)
    alpha.create(COPY, readonly_copy=NAME)
    beta.wait_known(COPY)
    return volume_id


def copies(owner: Owner) -> list[Path]:
    """Return the directories of what the node shows read-only."""
    return [*owner.pool.glob("readonly/*")]


def read(owner: Owner, mount_id: str = "r") -> Path:
    """Mount the read-only copy; return where this process sees it."""
    return owner.path(owner.mount(COPY, mount_id))


def test_a_reader_on_another_node_sees_the_last_commit_and_owns_nothing(
    pair: tuple[Owner, Owner], records: Records
) -> None:
    alpha, beta = pair
    volume_id = written(alpha, beta, records)
    before, head = shape(live(beta, volume_id)), records.head(volume_id)
    shown = read(beta)
    assert shape(shown) == before
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        (shown / "mine").touch()
    status = beta.get(COPY)["Status"]
    assert (status["backend"], status["readonly_copy"]) == ("readonly", NAME)
    assert status["commit"] == str(head.committed)
    # The member takes what comes meanwhile; who reads goes on to see one moment.
    (live(alpha, volume_id) / "later").write_text("later")
    wait_same(alpha, beta, volume_id)
    assert shape(shown) == before
    now = records.head(volume_id)
    assert (now.owner, now.epoch, now.members) == (head.owner, head.epoch, head.members)
    # Another container of the node sees the same, and the last one takes it away.
    assert read(beta, "r2") == shown
    beta.unmount(COPY, "r")
    assert shape(shown) == before
    beta.unmount(COPY, "r2")
    assert not copies(beta)
    assert "commit" not in beta.get(COPY)["Status"]
    assert (read(beta) / "later").read_text() == "later"
    beta.unmount(COPY, "r")
    wait_until(lambda: not [*beta.pool.glob("trash/*")], "all is deleted")
    alpha.unmount(NAME)


def test_the_owner_shows_its_last_commit_where_there_is_one(
    pair: tuple[Owner, Owner], records: Records
) -> None:
    alpha, beta = pair
    volume_id = written(alpha, beta, records)
    before = shape(live(alpha, volume_id))
    shown = read(alpha)
    quality = "snapshot" if [*alpha.copy(volume_id).glob("commits/*")] else "fuzzy"
    assert shape(shown) == before
    assert alpha.get(COPY)["Status"]["quality"] == quality
    # It is no use of the volume itself: that goes where its containers go.
    alpha.unmount(NAME)
    beta.mount_at_last(NAME)
    (live(beta, volume_id) / "new").touch()
    wait_same(beta, alpha, volume_id)
    assert shape(shown) == before
    alpha.unmount(COPY, "r")
    beta.unmount(NAME)


def test_on_btrfs_what_the_owner_has_written_since_is_not_shown(
    tmp_path: Path, make_owner: Make, records: Records
) -> None:
    enter_private_mounts()
    with loop_filesystem(tmp_path, "btrfs", size="1G") as disk:
        alpha, beta = pair_on(disk, tmp_path.name, make_owner)
        volume_id = alpha.create(NAME, interval="1h")
        beta.wait_known(NAME)
        alpha.mount_at_last(NAME)
        (live(alpha, volume_id) / "committed").touch()
        alpha.unmount(NAME)
        wait_held(records, volume_id, alpha, beta)
        alpha.mount_at_last(NAME)
        (live(alpha, volume_id) / "half-written").touch()
        alpha.create(COPY, readonly_copy=NAME)
        assert [each.name for each in read(alpha).iterdir()] == ["committed"]
        alpha.unmount(COPY, "r")
        # While no member lives no commits are made, nor when it is let go then.
        beta.stop()
        alpha.wait_down("beta")
        (live(alpha, volume_id) / "alone").touch()
        every = {"committed", "half-written", "alone"}
        assert {each.name for each in read(alpha).iterdir()} == every
        alpha.unmount(COPY, "r")
        alpha.unmount(NAME)
        alpha.mount_at_last(NAME)
        beta.start()
        beta.wait_member()
        assert {each.name for each in read(alpha).iterdir()} == every
        assert "newer" not in alpha.get(COPY)["Status"]
        alpha.unmount(COPY, "r")
        alpha.unmount(NAME)
        alpha.close()
        beta.close()


def test_what_the_disk_of_a_member_does_not_hold_is_told_of(
    tmp_path: Path, make_owner: Make, records: Records
) -> None:
    enter_private_mounts()
    with (
        loop_filesystem(tmp_path, "xfs", size="1G") as large,
        loop_filesystem(tmp_path, "ext4", size="1G") as small,
    ):
        alpha = make_owner("alpha", daemon={"pool": str(large / "pool")})
        beta = make_owner("beta", daemon={"pool": str(small / "pool")})
        beta.pool = small / "pool"
        alpha.pool = large / "pool"
        volume_id = alpha.create(NAME, interval="1s")
        alpha.create(COPY, readonly_copy=NAME)
        beta.wait_known(COPY)
        alpha.mount_at_last(NAME)
        file = large / "file"
        file.touch()
        os.setxattr(file, "trusted.large", b"x" * 40_000)
        file.rename(live(alpha, volume_id) / "file")
        wait_held(records, volume_id, alpha, beta)
        wait_until((live(beta, volume_id) / "file").exists, "it comes")
        read(beta)
        lacks = "1 files lack attributes that the filesystem does not hold: 'file'"
        assert beta.get(COPY)["Status"]["lacks"] == lacks
        beta.unmount(COPY, "r")
        alpha.unmount(NAME)
        alpha.close()
        beta.close()


def test_a_node_without_a_copy_says_where_there_is_one(
    two: tuple[Owner, Owner], make_owner: Make, records: Records
) -> None:
    alpha, beta = two
    written(alpha, beta, records)
    gamma = make_owner("gamma")
    gamma.wait_known(COPY)
    refused = gamma.refused("Mount", Name=COPY, ID="r")
    assert "node 'gamma' has no copy of 'data'" in refused
    assert "run it on node 'alpha' or 'beta', or: remora replica add data gamma" in (
        refused
    )
    assert not gamma.mount_directories()
    assert gamma.references(COPY) == (0, 0)
    alpha.unmount(NAME)


def test_what_an_owner_that_crashed_has_left_is_no_commit(
    two: tuple[Owner, Owner], records: Records
) -> None:
    alpha, beta = two
    volume_id = written(alpha, beta, records)
    # As after a power cut: live in an epoch that this boot does not own. And the
    # records may be older, out of a backup.
    records.change(volume_id, *records.heads.drop_epochs(volume_id), boot_id="another")
    alpha.wait_known(NAME)
    wait_until(
        lambda: (
            "it was not let go orderly"
            in alpha.call("Mount", {"Name": COPY, "ID": "r"}).error
        ),
        "what is here is refused",
        timeout_s=WAIT_S,
    )
    assert not copies(alpha)


def test_it_survives_the_daemon_and_is_swept_after_a_crash(
    two: tuple[Owner, Owner], records: Records
) -> None:
    alpha, beta = two
    volume_id = written(alpha, beta, records)
    before = shape(live(beta, volume_id))
    shown = read(beta)
    beta.kill()
    beta.start()
    beta.wait_member()
    assert shape(shown) == before
    assert beta.get(COPY)["Status"]["commit"]
    beta.unmount(COPY, "r")
    assert not copies(beta)
    # A power cut ends the mount, and what was being copied is half a tree.
    target = beta.mount(COPY, "r")
    beta.kill()
    beta.run("umount", str(target))
    assert copies(beta)
    (beta.pool / "readonly" / volume_id / "data").mkdir(parents=True)
    (beta.pool / "readonly/.strange").mkdir()
    (beta.pool / "copies/half").mkdir()
    beta.start()
    wait_until(
        lambda: not [*copies(beta), *beta.pool.glob("copies/*")],
        "what was left is swept",
        timeout_s=WAIT_S,
    )
    alpha.unmount(NAME)


def test_it_is_removed_like_any_volume(
    two: tuple[Owner, Owner], records: Records
) -> None:
    alpha, beta = two
    volume_id = written(alpha, beta, records)
    target = beta.mount(COPY, "r")
    assert "holds 1 mount" in beta.refused("Remove", Name=COPY)
    # Another node cannot know of readers here: they read on, and all goes after them.
    reader = beta.popen(["unshare", "-m", "--", "python3", "-c", _READ, str(target)])
    wait_until(lambda: users_of(beta, target) == 1, "it is read")
    alpha.ok("Remove", Name=COPY)
    beta.wait_unknown(COPY)
    assert copies(beta)
    beta.ok("Unmount", Name=COPY, ID="r")
    reader.kill()
    reader.wait(timeout=WAIT_S)
    wait_until(lambda: not copies(beta), "what it showed is gone", timeout_s=WAIT_S)
    assert not beta.mount_directories()
    # The volume itself was never in use here.
    alpha.unmount(NAME)
    wait_held(records, volume_id, alpha, beta)
    alpha.ok("Remove", Name=NAME)


def users_of(owner: Owner, target: Path) -> int:
    """Return how many processes beside the daemon's own work in *target*."""
    done = subprocess.run(
        owner.inside("sh", "-c", 'for d in /proc/[0-9]*/cwd; do readlink "$d"; done'),
        capture_output=True,
        timeout=WAIT_S,
        check=False,
    )
    return done.stdout.decode().splitlines().count(str(target))


def test_a_copy_that_is_behind_says_so_and_one_of_no_member_is_not_shown(
    two: tuple[Owner, Owner], records: Records
) -> None:
    alpha, beta = two
    volume_id = written(alpha, beta, records)
    alpha.unmount(NAME)
    wait_held(records, volume_id, alpha, beta)
    newest = records.head(volume_id).committed
    newer = msgspec.structs.replace(newest, seq=newest.seq + 1)
    records.change(volume_id, committed=newer, holders=(alpha.id,))
    beta.wait_known(NAME, commit=str(newer))
    read(beta)
    status = beta.get(COPY)["Status"]
    assert (status["commit"], status["newer"]) == (str(newest), str(newer))
    beta.unmount(COPY, "r")
    # It stays as long as nothing else has it; nobody brings it up to date any more.
    records.change(volume_id, members=(alpha.id,))
    wait_until(
        lambda: (
            "keeps no copy any more"
            in beta.call("Mount", {"Name": COPY, "ID": "r"}).error
            or "has no copy" in beta.call("Mount", {"Name": COPY, "ID": "r"}).error
        ),
        "it is refused",
        timeout_s=WAIT_S,
    )
