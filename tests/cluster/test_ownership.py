"""
Who may mount a volume: one node at a time, and never one that would begin empty.

Two daemons with everything that belongs to them, on one etcd; see
`tests/support/owners.py`.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable

import pytest

from plugin.ownership.state import EMPTY, FILLED, Commit
from tests.protocol.node import wait_until
from tests.support.etcd import Cluster
from tests.support.owners import Owner, Records, timed_call

Make = Callable[..., Owner]
ROUNDS = 100


@pytest.fixture
def name() -> str:
    """Return the name of a volume that no other test has."""
    return f"v-{uuid.uuid4().hex[:8]}"


def mounted_at_once(owners: tuple[Owner, Owner], name: str) -> list[str]:
    """Return each node's answer to a Mount that all get at the same moment."""
    errors = ["", ""]
    barrier = threading.Barrier(len(owners))

    def mount(number: int) -> None:
        barrier.wait()
        body = {"Name": name, "ID": f"id-{number}"}
        errors[number] = owners[number].call("Mount", body).error

    threads = [threading.Thread(target=mount, args=(each,)) for each in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_of_two_that_mount_at_once_one_wins_every_time(
    shared_owners: tuple[Owner, Owner], shared_records: Records
) -> None:
    wins = [0, 0]
    for number in range(ROUNDS):
        name = f"race-{number}"
        volume_id = shared_owners[number % 2].create(name, replicas="1")
        shared_owners[1 - number % 2].wait_known(name)
        errors = mounted_at_once(shared_owners, name)
        assert errors.count("") == 1, errors
        won = errors.index("")
        wins[won] += 1
        winner, loser = shared_owners[won], shared_owners[1 - won]
        assert f"'{winner.name}'" in errors[1 - won]
        assert "is in use on node" in errors[1 - won]
        assert winner.mounts() == [volume_id]
        assert loser.mounts() == loser.mount_directories() == []
        assert loser.references(name) == (0, 0)
        assert shared_records.head(volume_id).owner == winner.id
        winner.unmount(name, f"id-{won}")
        winner.wait_known(name, ownership="idle")
        assert winner.mounts() == []
        winner.ok("Remove", Name=name)
    print(f"won: {wins}")
    for each in shared_owners:
        each.wait_unknown(f"race-{ROUNDS - 1}")


def test_containers_of_one_node_share_the_volume(alpha: Owner, name: str) -> None:
    volume_id = alpha.create(name, replicas="1")
    target = alpha.mount(name, "one")
    epoch = alpha.get(name)["Status"]["epoch"]
    # `docker cp` mounts and unmounts with the container's own id.
    assert alpha.mount(name, "one") == alpha.mount(name, "two") == target
    alpha.unmount(name, "one")
    alpha.unmount(name, "two")
    assert alpha.mounts() == [volume_id]
    status = alpha.get(name)["Status"]
    assert (status["epoch"], status["owner"]) == (epoch, "alpha")
    alpha.unmount(name, "one")
    assert alpha.mounts() == []
    alpha.wait_known(name, ownership="idle", owner="", epoch=epoch)


def test_a_second_container_needs_no_store(
    make_owner: Make, server: Cluster, name: str
) -> None:
    owner = make_owner("alpha", lease_ttl_s=60)
    owner.create(name, replicas="1")
    target = owner.mount(name, "one")
    server.members[0].freeze()
    assert owner.mount(name, "two") == target
    owner.unmount(name, "one")
    assert owner.mounts() == [target.name]


def test_a_volume_that_was_never_written_begins_where_it_is_mounted_first(
    alpha: Owner, beta: Owner, name: str
) -> None:
    volume_id = alpha.create(name, replicas="1")
    beta.wait_known(name)
    target = beta.mount(name)
    beta.run("sh", "-c", f"echo precious > {target}/file")
    beta.unmount(name)
    beta.wait_known(name, ownership="idle")
    alpha.wait_known(name, ownership="idle")
    alpha.mount_at_last(name)
    assert (alpha.copy(volume_id) / "live/file").read_text() == "precious\n"
    alpha.unmount(name)


@pytest.mark.parametrize("how", ["from", "import"])
def test_a_volume_made_with_bytes_begins_empty_nowhere(
    how: str, alpha: Owner, beta: Owner, name: str
) -> None:
    source = f"{name}-source"
    if how == "from":
        alpha.create(source, replicas="1")
        target = alpha.mount(source)
        alpha.run("sh", "-c", f"echo precious > {target}/file")
        alpha.unmount(source)
        volume_id = alpha.create(name, **{"from": source})
    else:
        directory = alpha.directory / source
        directory.mkdir()
        (directory / "file").write_text("precious\n")
        body = {"name": name, "source": str(directory)}
        volume_id = alpha.control_ok("POST", "/v1/import", body)["id"]
    beta.wait_known(name)
    beta.mount_at_last(name)
    assert (beta.copy(volume_id) / "live/file").read_text() == "precious\n"
    beta.unmount(name)


def test_a_copy_that_was_deleted_by_hand_is_never_begun_empty(
    alpha: Owner, beta: Owner, name: str, shared_records: Records
) -> None:
    volume_id = alpha.create(name, replicas="1")
    target = alpha.mount(name)
    alpha.run("sh", "-c", f"echo precious > {target}/file")
    alpha.unmount(name)
    beta.wait_known(name, ownership="idle", commit="1.1")
    alpha.run("rm", "-r", str(alpha.copy(volume_id)))
    before = shared_records.head(volume_id)
    assert "missing" in alpha.refused("Mount", Name=name, ID="one")
    refused = beta.refused("Mount", Name=name, ID="one")
    assert "'alpha'" in refused
    for each in (alpha, beta):
        assert not each.copy(volume_id).exists()
        assert each.mounts() == each.mount_directories() == []
    after = shared_records.head(volume_id)
    assert (after.committed, after.holders) == (before.committed, before.holders)


def test_the_copy_of_a_crashed_owner_is_never_begun_empty(
    make_owner: Make, records: Records, name: str
) -> None:
    """Nothing was ever committed: only who owned it tells that there was something."""
    alpha, beta = make_owner("alpha"), make_owner("beta")
    volume_id = alpha.create(name, replicas="1")
    alpha.mount(name)
    alpha.kill()
    alpha.run("umount", str(alpha.mount_dir / volume_id))
    alpha.run("rm", "-r", str(alpha.copy(volume_id)))
    beta_refused = ""

    def refuses_for_good() -> bool:
        nonlocal beta_refused
        beta_refused = beta.refused("Mount", Name=name, ID="one")
        waiting = ("is in use", "may still be written")
        return not any(each in beta_refused for each in waiting)

    wait_until(refuses_for_good, "the lease ends", timeout_s=60)
    assert "begin empty" in beta_refused
    assert "'alpha'" in beta_refused
    assert not beta.copy(volume_id).exists() or not beta.mounts()
    assert records.head(volume_id).committed == EMPTY
    alpha.start()
    alpha.wait_member()
    # It owns the volume in this boot, and takes its epoch again.
    refused = alpha.refused("Mount", Name=name, ID="one")
    assert f"the data of volume '{name}' is missing" in refused
    assert not alpha.copy(volume_id).exists()


def test_what_was_made_with_bytes_has_a_commit_before_its_first_epoch(
    alpha: Owner, name: str, shared_records: Records
) -> None:
    directory = alpha.directory / name
    directory.mkdir()
    body = {"name": name, "source": str(directory)}
    volume_id = alpha.control_ok("POST", "/v1/import", body)["id"]
    alpha.mount(name)
    head = shared_records.head(volume_id)
    assert head.committed == FILLED
    assert alpha.id in head.holders  # another node may have got it already
    assert shared_records.heads.lineage(volume_id).epochs[1].base == FILLED
    alpha.unmount(name)
    # A round may have been before the unmount.
    assert shared_records.head(volume_id).committed >= Commit(1, 1)


def test_etcd_that_is_away_is_named_within_five_seconds(
    make_owner: Make, server: Cluster, name: str
) -> None:
    owner = make_owner("alpha")
    owner.create(name, replicas="1")
    for stop in (server.members[0].freeze, server.members[0].kill):
        stop()
        took_s, error = timed_call(owner, "Mount", Name=name, ID="one")
        assert "etcd" in error or "lease" in error, error
        assert took_s < 5.5, error
        assert owner.mounts() == owner.mount_directories() == []
        assert owner.references(name) == (0, 0)
        server.heal()
        owner.wait_member()
    owner.mount(name)
    owner.unmount(name)
