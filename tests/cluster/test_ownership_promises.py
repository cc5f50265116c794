"""
Promises: a former owner lets go for the next one, and for nobody else.

What a stolen key can ask for is asked here with the key of a real member.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from backends.errors import RemoraError
from plugin.errors import PeerUnreachableError
from plugin.ownership.heads import drop_lock
from plugin.ownership.state import Commit
from plugin.peers.channel import Peers
from plugin.peers.sharing import SharedSsh
from tests.protocol.node import wait_until
from tests.support.link import Link
from tests.support.owners import WAIT_S, Owner, Records, Writer

Make = Callable[..., Owner]
NAME = "db"


@contextmanager
def key_of(thief: Owner, victim: Owner) -> Iterator[Callable[..., Any]]:
    """Yield what asks *victim* with the key of *thief*."""
    peers = Peers(SharedSsh(thief.state_dir / "peer", sockets=thief.directory / "ssh"))
    peer = victim.as_peer()
    peers.update([peer])

    def ask(request: str, **body: object) -> Any:
        return peers.call(peer.id, request, body, deadline_s=20)

    def let_in() -> bool:
        with suppress(PeerUnreachableError):
            return "version" in ask("hello")
        return False

    try:
        # A node is let in a moment after it has joined.
        wait_until(let_in, "the key is known", timeout_s=WAIT_S)
        yield ask
    finally:
        peers.close()


def tree(directory: Path) -> dict[str, bytes]:
    """Return all that is below *directory*."""
    return {
        str(path): path.read_bytes() if path.is_file() else b""
        for path in sorted(directory.rglob("*"))
    }


def test_a_former_owner_ends_its_writers_and_seals_their_bytes_for_the_next_one(
    make_owner: Make, records: Records
) -> None:
    alpha, beta = make_owner("alpha"), make_owner("beta")
    volume_id = alpha.create(NAME, replicas="1")
    writer = Writer(alpha, alpha.mount(NAME))
    beta.wait_known(NAME, owner="alpha")

    def promised() -> bool:
        # As the end of a lease does; alpha takes it again within seconds.
        state = records.heads.read(volume_id)
        if state.locked_by == alpha.id:
            records.change(volume_id, drop_lock(volume_id))
        return not beta.call("Mount", {"Name": NAME, "ID": "one"}).error

    wait_until(promised, "alpha promises", timeout_s=WAIT_S)
    writer.wait_killed()
    content = (alpha.copy(volume_id) / "live/stamps").read_bytes()
    replica = alpha.replica(volume_id)
    assert (replica.live_epoch, replica.commit) == (0, Commit(1, 1))
    assert replica.promised >= 2
    assert content
    # The new owner has got all of them.
    assert (beta.copy(volume_id) / "live/stamps").read_bytes() == content
    alpha.unmount(NAME)
    beta.unmount(NAME)


@pytest.mark.long
def test_an_owner_cut_off_from_etcd_promises_nothing_and_is_told_afterwards(
    make_owner: Make, records: Records, link: Link
) -> None:
    """What it cannot read in the store, anybody with a key might have made up."""
    alpha, beta = make_owner("alpha", link=link), make_owner("beta")
    volume_id = alpha.create(NAME, replicas="1")
    writer = Writer(alpha, alpha.mount(NAME))
    beta.wait_known(NAME, owner="alpha")
    link.cut()
    wait_until(
        lambda: "would begin empty" in beta.refused("Mount", Name=NAME, ID="one"),
        "the lease ends",
        timeout_s=WAIT_S,
    )
    assert "'alpha'" in beta.refused("Mount", Name=NAME, ID="one")
    assert alpha.replica(volume_id).promised == 1
    # It is the only one that has the bytes, so it may go on.
    writer.wait_writing()
    assert " stops " not in alpha.guard_log()
    # What beta does if it cannot see yet that nobody else lives, and gives up again.
    epoch = records.head(volume_id).epoch
    records.change(volume_id, epoch=epoch + 1, owner=beta.id, phase="idle")
    link.mend()
    writer.wait_killed()
    before = (alpha.copy(volume_id) / "live/stamps").read_bytes()
    alpha.unmount(NAME)
    assert alpha.replica(volume_id).commit == Commit(1, 1)
    alpha.mount(NAME)
    assert (alpha.copy(volume_id) / "live/stamps").read_bytes() == before
    assert records.head(volume_id).owner == alpha.id


@pytest.fixture
def written(alpha: Owner, beta: Owner) -> Iterator[tuple[str, str]]:
    """Yield name and id of a volume that alpha has mounted and written to."""
    name = f"v-{uuid.uuid4().hex[:8]}"
    volume_id = alpha.create(name, replicas="1")
    target = alpha.mount(name)
    alpha.run("sh", "-c", f"echo precious > {target}/file")
    beta.wait_known(name, owner="alpha")
    yield name, volume_id
    alpha.unmount(name)


@pytest.mark.parametrize("epoch", [0, 1, 2, 10**6])
def test_nothing_is_promised_that_the_store_does_not_know(
    epoch: int, alpha: Owner, beta: Owner, written: tuple[str, str]
) -> None:
    name, volume_id = written
    before = tree(alpha.copy(volume_id))
    with key_of(beta, alpha) as ask, pytest.raises(RemoraError, match="has no part"):
        ask("promise", volume=volume_id, name=name, epoch=epoch)
    assert tree(alpha.copy(volume_id)) == before
    assert alpha.logged(f"node {beta.id} has no part in volume {volume_id}")


def test_what_another_node_recovers_is_not_promised_to_a_third(
    alpha: Owner, beta: Owner, written: tuple[str, str], shared_records: Records
) -> None:
    other = f"{written[0]}-other"
    other_id = alpha.create(other)
    alpha.mount(other)
    alpha.unmount(other)
    shared_records.change(
        other_id, epoch=2, owner=str(uuid.uuid4()), phase="recovering"
    )
    alpha.wait_known(other, epoch=2)
    before = tree(alpha.copy(other_id))
    with key_of(beta, alpha) as ask, pytest.raises(RemoraError, match="stale-epoch"):
        ask("promise", volume=other_id, name=other, epoch=2)
    assert tree(alpha.copy(other_id)) == before
    assert alpha.logged(f"is not recovered by node {beta.id} in epoch 2")
    # The node that the records name would have had it.
    shared_records.change(other_id, owner=beta.id)
    with key_of(beta, alpha) as ask:

        def promised() -> object:
            # Not while an earlier process of alpha's may have let an owner go on.
            with suppress(RemoraError):
                return ask("promise", volume=other_id, name=other, epoch=2)
            return None

        wait_until(promised, "alpha promises", timeout_s=WAIT_S)
        assert promised() == {"commit": [1, 1]}
    assert alpha.replica(other_id).promised == 2


@pytest.mark.parametrize("request_", ["promise", "hold"])
@pytest.mark.parametrize(
    "body",
    [
        {},
        {"volume": 1, "name": None, "epoch": "x"},
        {"volume": "../../etc", "name": "../..", "epoch": 1},
        {"volume": "x" * 1000, "name": "y", "epoch": -1},
    ],
)
def test_requests_that_make_no_sense_are_refused(
    request_: str, body: dict[str, object], alpha: Owner, beta: Owner
) -> None:
    with key_of(beta, alpha) as ask, pytest.raises(RemoraError):
        ask(request_, **body)
    assert alpha.process.poll() is None
    assert not alpha.logged('"level": "error"')


def test_only_its_owner_gets_more_time_for_a_volume(
    alpha: Owner, beta: Owner, written: tuple[str, str]
) -> None:
    _, volume_id = written
    with key_of(beta, alpha) as ask, pytest.raises(RemoraError, match="has no part"):
        ask("hold", volume=volume_id, epoch=1)
    with key_of(alpha, beta) as ask:
        with pytest.raises(RemoraError, match="stale-epoch"):
            ask("hold", volume=volume_id, epoch=2)
        assert ask("hold", volume=volume_id, epoch=1) == {}


@pytest.mark.parametrize("epoch", [1, 7])
def test_bytes_of_an_epoch_that_the_sender_does_not_own_are_refused(
    epoch: int,
    alpha: Owner,
    beta: Owner,
    written: tuple[str, str],
    tmp_path: Path,
) -> None:
    _, volume_id = written
    before = tree(alpha.copy(volume_id))
    (tmp_path / "file").write_text("worthless\n")
    sent = beta.send_files(
        alpha, tmp_path, names=b"file\0", volume=volume_id, commit=(epoch, 1)
    )
    assert sent.returncode != 0
    assert "stale-epoch" in sent.stderr.decode()
    assert tree(alpha.copy(volume_id)) == before
    refusal = f"does not own volume {volume_id} in epoch {epoch}"
    wait_until(lambda: alpha.logged(refusal), "it is logged")
