"""
What replication has to bear, one scenario each, with real daemons, ssh, rsync and etcd.

Their numbers are those of `tests/unit/test_scenarios.py`.
"""

from __future__ import annotations

import mmap
import os
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from plugin.ownership.state import Commit
from tests.protocol.command import caller
from tests.protocol.node import wait_until
from tests.support.copies import live, wait_held
from tests.support.link import Link
from tests.support.owners import WAIT_S, Owner, Records

Make = Callable[..., Owner]
NAME = "data"
# All names are looked at once a minute.
SCAN_WAIT_S = 150.0


def names(directory: Path) -> list[str]:
    return sorted(each.name for each in directory.iterdir())


def wait_names(directory: Path, *wanted: str) -> None:
    """Return when exactly these are there: a commit is applied file by file."""

    def there() -> bool:
        return directory.is_dir() and names(directory) == sorted(wanted)

    wait_until(there, f"{directory} has {wanted}", timeout_s=WAIT_S)


def apart(owner: Owner, volume_id: str) -> dict[str, list[str]]:
    """Return the names of the files in each tree that the node has set apart."""
    return {
        tree.name: names(tree)
        for tree in (owner.copy(volume_id) / "quarantine").glob("*")
    }


def wait_commit(owner: Owner, volume_id: str, after: Commit) -> None:
    """Return when the node's copy has a commit after this one."""
    wait_until(
        lambda: owner.replica(volume_id).commit > after,
        f"{owner.name} has a commit after {after}",
        timeout_s=WAIT_S,
    )


def wait_holders(records: Records, volume_id: str, *owners: Owner) -> Commit:
    """Return the newest commit when exactly *owners* have it."""
    wait_held(records, volume_id, *owners)
    return records.head(volume_id).committed


def begin(records: Records, *owners: Owner, **options: str) -> tuple[str, Commit]:
    """Mount a new volume at the first, with a file that all of them have."""
    first = owners[0]
    members = ",".join(each.name for each in owners)
    volume_id = first.create(NAME, interval="1s", members=members, **options)
    for each in owners:
        each.wait_known(NAME)
    first.mount(NAME)
    (live(first, volume_id) / "first").write_text("first")
    for each in owners[1:]:
        copy = live(each, volume_id) / "first"
        wait_until(copy.exists, f"{each.name} has it", timeout_s=WAIT_S)
    return volume_id, wait_holders(records, volume_id, *owners)


def come_back(owner: Owner) -> None:
    """Start the node's daemon; its engine finds the container ended."""
    owner.start()
    owner.wait_member()
    owner.call("Unmount", {"Name": NAME, "ID": "one"})


def test_the_owner_dies_while_it_sends(make_owner: Make, records: Records) -> None:
    """[1] The copy shows the commit before, and the next owner goes on from it."""
    alpha, beta = make_owner("alpha"), make_owner("beta")
    volume_id, _ = begin(records, alpha, beta)
    staging = beta.copy(volume_id) / "staging"
    # No round is to see a part of it.
    with (alpha.state_dir / "large").open("wb") as file:
        for _ in range(300):
            file.write(os.urandom(1 << 20))
    (alpha.state_dir / "large").rename(live(alpha, volume_id) / "large")
    wait_until(
        lambda: any(each.is_file() for each in staging.rglob("*large*")),
        "a part of it has come",
        timeout_s=WAIT_S,
    )
    alpha.kill()
    beta.mount_at_last(NAME)
    assert names(live(beta, volume_id)) == ["first"]
    come_back(alpha)
    wait_until(
        lambda: list(apart(alpha, volume_id).values()) == [["first", "large"]],
        "what was not sent is set apart",
        timeout_s=WAIT_S,
    )


def unpublished(
    make_owner: Make, records: Records, link: Link
) -> tuple[str, Commit, list[Owner]]:
    """
    Return a volume whose dead owner has brought a commit to beta that no record names.

    gamma, which has the commit before it, is down.
    """
    alpha = make_owner("alpha", link=link)
    beta, gamma = make_owner("beta"), make_owner("gamma")
    volume_id, before = begin(records, alpha, beta, gamma)
    gamma.kill()
    link.cut()
    (live(alpha, volume_id) / "more").write_text("more")
    copy = live(beta, volume_id) / "more"
    wait_until(copy.exists, "beta has it", timeout_s=WAIT_S)
    alpha.kill()
    newest = beta.replica(volume_id).commit
    assert newest > before
    assert records.head(volume_id).committed < newest
    return volume_id, newest, [alpha, beta, gamma]


def test_a_commit_that_no_record_names_is_used(
    make_owner: Make, records: Records, link: Link
) -> None:
    """[2] The member that has it offers it to the next owner."""
    volume_id, newest, (_, beta, gamma) = unpublished(make_owner, records, link)
    gamma.start()
    gamma.wait_member()
    gamma.mount_at_last(NAME)
    assert (live(gamma, volume_id) / "more").read_text() == "more"
    assert records.head(volume_id).committed >= newest
    assert beta.replica(volume_id).promised >= 2


def test_a_commit_that_no_record_names_and_nobody_used_is_set_apart(
    make_owner: Make, records: Records, link: Link
) -> None:
    """[2] It comes back after another owner has gone on without it."""
    volume_id, newest, (_, beta, gamma) = unpublished(make_owner, records, link)
    beta.kill()
    gamma.start()
    gamma.wait_member()
    gamma.mount_at_last(NAME)
    assert names(live(gamma, volume_id)) == ["first"]
    (live(gamma, volume_id) / "other").write_text("other")
    beta.start()
    beta.wait_member()
    wait_names(live(beta, volume_id), "first", "other")
    assert apart(beta, volume_id) == {str(newest): ["first", "more"]}


def test_a_member_whose_disk_is_full(make_owner: Make, records: Records) -> None:
    """[12] It keeps the commit it has, the other one goes on, and later it follows."""
    alpha, beta = make_owner("alpha"), make_owner("beta")
    full = make_owner("full", daemon={"disk": True})
    volume_id = alpha.create(NAME, interval="1s", members="alpha,beta,full")
    for each in (beta, full):
        each.wait_known(NAME)
    alpha.mount(NAME)
    (live(alpha, volume_id) / "first").write_text("first")
    wait_holders(records, volume_id, alpha, beta, full)
    available = full.run("df", "--output=avail", "-k", str(full.pool)).split()[-1]
    filler = str(full.pool.parent / "filler")
    full.run("fallocate", "-l", f"{int(available) - 512}K", filler)
    (live(alpha, volume_id) / "more").write_bytes(os.urandom(4 << 20))
    wait_holders(records, volume_id, alpha, beta)
    alpha.wait_known(NAME, replication="2 of 3 copies")
    assert full.run("ls", str(full.copy(volume_id) / "live")).split() == ["first"]
    full.run("rm", filler)
    wait_holders(records, volume_id, alpha, beta, full)
    shown = full.run("ls", str(full.copy(volume_id) / "live")).split()
    assert shown == ["first", "more"]


@pytest.mark.parametrize("failover", ["refuse", "accept_loss"])
def test_the_only_holder_is_dead(
    make_owner: Make, records: Records, failover: str
) -> None:
    """[13, 14] An Unmount without members counts; without its node it is missed."""
    alpha, beta = make_owner("alpha"), make_owner("beta")
    volume_id, before = begin(records, alpha, beta, failover=failover)
    beta.kill()
    (live(alpha, volume_id) / "more").write_text("more")
    alpha.unmount(NAME)
    head = records.head(volume_id)
    assert (head.phase, head.holders) == ("idle", (alpha.id,))
    assert head.committed > before
    alpha.wait_known(NAME, replication="1 of 2 copies")
    alpha.kill()
    beta.start()
    beta.wait_member()
    if failover == "accept_loss":
        beta.mount_at_last(NAME)
        assert names(live(beta, volume_id)) == ["first"]
        (event,) = beta.events("owned", NAME)
        assert event["lost"] == str(head.committed)
        return
    refused = beta.call("Mount", {"Name": NAME, "ID": "one"}).error
    assert f"commit {head.committed}" in refused
    assert "'alpha'" in refused
    alpha.start()
    beta.mount_at_last(NAME)
    assert (live(beta, volume_id) / "more").read_text() == "more"


@pytest.mark.timeout(600)
def test_a_mapping_that_is_never_closed(make_owner: Make, records: Records) -> None:
    """[24] No event tells of what is written through it; it comes all the same."""
    alpha, beta = make_owner("alpha"), make_owner("beta")
    volume_id, _ = begin(records, alpha, beta)
    (live(alpha, volume_id) / "mapped").write_bytes(b"." * 8192)
    copy = live(beta, volume_id) / "mapped"
    wait_until(copy.exists, "beta has the file", timeout_s=WAIT_S)
    with (live(alpha, volume_id) / "mapped").open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    for number in range(2):
        mapped[4096 * number] = ord("x")
        wait_until(
            lambda at=4096 * number: copy.read_bytes()[at] == ord("x"),
            f"write {number} through the mapping is there",
            timeout_s=SCAN_WAIT_S,
        )
    mapped.close()


LIMIT = '[replication]\nbandwidth_limit = "4MiB"'
LARGE_SIZE = 120 << 20
# Engines give an Unmount 30 s at least.
UNMOUNT_S = 30.0


@pytest.mark.timeout(600)
def test_more_is_left_than_an_unmount_has_time_for(
    make_owner: Make, records: Records
) -> None:
    """[21] It is answered in time; the next Mount gets all of it, if need be later."""
    alpha, beta = make_owner("alpha", profiles=LIMIT), make_owner("beta")
    volume_id, _ = begin(records, alpha, beta)
    content = os.urandom(1 << 20) * (LARGE_SIZE >> 20)
    (alpha.state_dir / "large").write_bytes(content)
    (alpha.state_dir / "large").rename(live(alpha, volume_id) / "large")
    body = {"Name": NAME, "ID": "one"}
    assert not alpha.call("Unmount", body, timeout_s=UNMOUNT_S).error
    head = records.head(volume_id)
    assert (head.phase, head.holders) == ("idle", (alpha.id,))
    beta.mount_at_last(NAME)
    assert (live(beta, volume_id) / "large").read_bytes() == content


def die_with_a_tail(owner: Owner, volume_id: str) -> None:
    """Let the node's containers write what its daemon never sends; then both die."""
    owner.signal(signal.SIGSTOP)
    (live(owner, volume_id) / f"tail-{owner.name}").write_text("tail")
    owner.kill()


def test_two_failovers_and_both_come_back(
    make_owner: Make,
    records: Records,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """[30] Each branch is listed and can be had; all copies are of one lineage."""
    alpha, beta, gamma = (make_owner(name) for name in ("alpha", "beta", "gamma"))
    volume_id, _ = begin(records, alpha, beta, gamma)
    die_with_a_tail(alpha, volume_id)
    beta.mount_at_last(NAME)
    (live(beta, volume_id) / "of-beta").write_text("kept")
    copy = live(gamma, volume_id) / "of-beta"
    wait_until(copy.exists, "gamma follows beta", timeout_s=WAIT_S)
    die_with_a_tail(beta, volume_id)
    gamma.mount_at_last(NAME)
    (live(gamma, volume_id) / "of-gamma").write_text("kept")
    for each in (alpha, beta):
        come_back(each)
    for each in (alpha, beta):
        wait_names(live(each, volume_id), "first", "of-beta", "of-gamma")
        ((commit, kept),) = apart(each, volume_id).items()
        assert f"tail-{each.name}" in kept
        archive = tmp_path / f"{each.name}.tar"
        arguments = ("quarantine", "export", NAME, commit, "-o", str(archive))
        assert caller(each, monkeypatch, capsys)(*arguments).code == 0
        with tarfile.open(archive) as opened:
            assert opened.extractfile(f"./tail-{each.name}").read() == b"tail"
    wait_holders(records, volume_id, alpha, beta, gamma)
    listed = {row["node"] for row in gamma.control_ok("GET", "/v1/quarantine")}
    assert listed == {"alpha", "beta"}


COMMON_SIZE = 16 << 20


def test_what_was_set_apart_is_not_sent_again(
    make_owner: Make, records: Records
) -> None:
    """A node that crashed as the owner gets the difference, not the whole volume."""
    alpha, beta = make_owner("alpha"), make_owner("beta")
    volume_id, _ = begin(records, alpha, beta)
    common = os.urandom(COMMON_SIZE)
    (live(alpha, volume_id) / "common").write_bytes(common)
    copy = live(beta, volume_id) / "common"
    wait_until(
        lambda: copy.exists() and copy.read_bytes() == common,
        "beta has it",
        timeout_s=WAIT_S,
    )
    wait_holders(records, volume_id, alpha, beta)
    die_with_a_tail(alpha, volume_id)
    beta.mount_at_last(NAME)
    (live(beta, volume_id) / "of-beta").write_text("kept")
    before = beta.sent_bytes()
    come_back(alpha)
    wait_names(live(alpha, volume_id), "common", "first", "of-beta")
    assert (live(alpha, volume_id) / "common").read_bytes() == common
    assert beta.sent_bytes() - before < COMMON_SIZE / 10
    ((_, kept),) = apart(alpha, volume_id).items()
    assert kept == ["common", "first", "tail-alpha"]


NAMES = 1_000_000
SEED_S = 3000.0
# The specification's bound, for a sync of ten files among them.
SYNC_MS = 5000.0


@pytest.mark.long
@pytest.mark.timeout(2 * SEED_S)
def test_a_directory_of_a_million_names(make_owner: Make, records: Records) -> None:
    """[22] What a sync of ten changed files takes does not follow their number."""
    alpha, beta = make_owner("alpha"), make_owner("beta")
    volume_id = alpha.create(NAME, interval="1s", members="alpha,beta")
    beta.wait_known(NAME)
    directory = live(alpha, volume_id) / "names"
    directory.mkdir()
    for number in range(NAMES):
        (directory / f"{number}").touch()
    alpha.mount(NAME)
    last = live(beta, volume_id) / "names" / f"{NAMES - 1}"
    wait_until(last.exists, "beta has them", timeout_s=SEED_S)
    wait_until(
        lambda: len(records.head(volume_id).holders) == 2, "held", timeout_s=SEED_S
    )
    before = len(alpha.events("synced", NAME))
    for number in range(10):
        (directory / f"{number * 99_991}").write_text("changed")
    copy = live(beta, volume_id) / "names" / f"{9 * 99_991}"
    wait_until(lambda: copy.read_text() == "changed", "followed", timeout_s=WAIT_S)
    wait_until(
        lambda: len(alpha.events("synced", NAME)) > before, "told", timeout_s=WAIT_S
    )
    took_ms = alpha.events("synced", NAME)[before]["duration_ms"]
    print(f"ten of {NAMES} changed: {took_ms} ms")
    assert took_ms < SYNC_MS
