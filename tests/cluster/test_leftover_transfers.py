"""
An rsync whose sender has gone writes nothing into what a member has taken since.

It is stopped here where it stands, as a connection that is cut leaves it for a while.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from plugin.ownership.state import EMPTY
from tests.protocol.node import wait_until
from tests.support.copies import live, wait_same
from tests.support.journal_trees import shape
from tests.support.owners import WAIT_S, Owner, Records
from tests.support.processes import stopped, with_open

Make = Callable[..., Owner]
NAME = "data"
FILES, FILE_SIZE = 40, 200_000
# More than a few exchanges bring, and fewer than that when half of them are there.
AHEAD, AHEAD_SIZE = 150, 30_000
# The first copy takes a few seconds.
LIMIT = '[replication]\nbandwidth_limit = "1MiB"'


def is_waited_for(lock: Path) -> bool:
    """Return whether somebody waits for *lock*. Source: proc_locks(5)."""
    inode = str(lock.stat().st_ino)
    lines = [each.split() for each in Path("/proc/locks").read_text().splitlines()]
    return any(
        each[1] == "->" and each[6].rpartition(":")[2] == inode for each in lines
    )


def session(process_id: int) -> set[int]:
    """
    Return what has started *process_id*, up to the sshd of its connection.

    Were that one to end, the kernel would let all of them go on: they would be an
    orphaned process group. Source: proc_pid_stat(5), setpgid(2).
    """
    found = set()
    while process_id > 1:
        name, _, rest = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")
        process_id = int(rest.split()[1])
        if "sshd" in name:
            break
        found.add(process_id)
    return found


def test_a_leftover_transfer_writes_nothing_into_the_next_one(
    make_owner: Make, records: Records
) -> None:
    """No commit is taken while the first one lives, and both copies are alike."""
    alpha, beta = make_owner("alpha", profiles=LIMIT), make_owner("beta")
    volume_id = alpha.create(NAME, interval="1s", members="alpha,beta")
    beta.wait_known(NAME)
    source = live(alpha, volume_id)
    for number in range(FILES):
        (source / f"{number:02}").write_bytes(os.urandom(FILE_SIZE))
    alpha.mount(NAME)
    home = beta.copy(volume_id)
    lock, tree = home / "receiving", home / "staging/tree"
    wait_until(
        lambda: tree.exists() and any(tree.iterdir()), "it comes", timeout_s=WAIT_S
    )
    first = with_open(lock)
    assert first
    with stopped(first.union(*map(session, first))):
        alpha.kill()
        for number in range(FILES):
            (source / f"{number:02}").write_bytes(os.urandom(FILE_SIZE))
        alpha.start()
        alpha.wait_member()
        wait_until(
            lambda: is_waited_for(lock) or beta.replica(volume_id).commit != EMPTY,
            "another one waits",
            timeout_s=WAIT_S,
        )
        assert beta.replica(volume_id).commit == EMPTY
    wait_until(
        lambda: len(records.head(volume_id).holders) == 2, "held", timeout_s=WAIT_S
    )
    assert shape(home / "live") == shape(source)
    assert not with_open(lock)


def test_what_an_earlier_attempt_left_is_no_part_of_a_full_commit(
    make_owner: Make, records: Records
) -> None:
    """Its size and times are those of a file of the commit, its content is not."""
    alpha, beta = make_owner("alpha"), make_owner("beta")
    volume_id = alpha.create(NAME, interval="1s", members="alpha,beta")
    beta.wait_known(NAME)
    alpha.mount(NAME)
    file = alpha.copy(volume_id) / "live/file"
    file.write_text("the commit's")
    alpha.unmount(NAME)
    wait_until(
        lambda: len(records.head(volume_id).holders) == 2, "held", timeout_s=WAIT_S
    )
    alpha.kill()
    # Without its manifest the next commit names everything.
    (alpha.copy(volume_id) / "manifest.db").unlink()
    left = beta.copy(volume_id) / "staging/tree/file"
    left.parent.mkdir(parents=True)
    left.write_text("left behind.")
    status = file.stat()
    os.utime(left, ns=(status.st_atime_ns, status.st_mtime_ns))
    alpha.start()
    alpha.wait_member()
    alpha.mount_at_last(NAME)
    (file.parent / "other").write_text("new")
    wait_same(alpha, beta, volume_id)
    alpha.unmount(NAME)


def test_files_that_came_ahead_of_an_owner_that_died_are_compared_again(
    make_owner: Make, records: Records
) -> None:
    """One of them has changed since, and kept its size and times."""
    alpha, beta = make_owner("alpha", profiles=LIMIT), make_owner("beta")
    volume_id = alpha.create(NAME, interval="1s", members="alpha,beta")
    beta.wait_known(NAME)
    alpha.mount(NAME)
    source, home = live(alpha, volume_id), beta.copy(volume_id)
    for number in range(AHEAD):
        (source / f"{number:03}").write_bytes(os.urandom(AHEAD_SIZE))
    wait_same(alpha, beta, volume_id)
    beta.kill()
    (home / "manifest.db").unlink()  # it believes nothing of what it has
    beta.start()
    beta.wait_member()
    (source / "new").write_text("there")
    tree = home / "staging/tree"
    wait_until(
        lambda: tree.exists() and len([*tree.iterdir()]) > AHEAD // 2,
        "it is filled",
        timeout_s=WAIT_S,
    )
    alpha.kill()
    # With it goes what it knew of the time since it has begun to fill.
    (alpha.copy(volume_id) / "manifest.db").unlink()
    before = (source / "000").stat()
    (source / "000").write_bytes(os.urandom(AHEAD_SIZE))
    os.utime(source / "000", ns=(before.st_atime_ns, before.st_mtime_ns))
    alpha.start()
    alpha.wait_member()
    wait_same(alpha, beta, volume_id)


def test_a_member_that_lost_its_manifest_is_in_step_again(
    make_owner: Make, records: Records
) -> None:
    """It believes nothing of what it has, and lacks more than a few exchanges bring."""
    alpha, beta = make_owner("alpha"), make_owner("beta")
    volume_id = alpha.create(NAME, interval="1s", members="alpha,beta")
    beta.wait_known(NAME)
    alpha.mount(NAME)
    directory = live(alpha, volume_id)
    for number in range(4200):
        (directory / f"{number:04}").write_text("there")
    wait_same(alpha, beta, volume_id)
    beta.kill()
    (beta.copy(volume_id) / "manifest.db").unlink()
    beta.start()
    beta.wait_member()
    (directory / "new").write_text("there")
    wait_same(alpha, beta, volume_id)
    alpha.unmount(NAME)
    wait_until(
        lambda: len(records.head(volume_id).holders) == 2, "held", timeout_s=WAIT_S
    )
