"""
MariaDB on a replicated volume: it moves orderly, and its node's power fails.

The pool is on the filesystem that the test's name says. Commits of a database that runs
are copies of slightly different moments on ext4, which it need not start from: what
came out is counted there. From snapshots (btrfs), and from commits that are made while
it stands still (XFS), it has to start each time.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.lab.cluster import NAMES, Cluster, Member
from tests.lab.database import ATOMIC, Client, Committed, DamagedError, Database
from tests.lab.disks import Disk
from tests.lab.lab import Lab, Topology
from tests.lab.labs import Labs
from tests.lab.node import NodeSpec
from tests.support.host import wait_until

# A number for `make test`, and one for `make test-long`.
MOVES_FEW, MOVES = 3, int(os.environ.get("REMORA_DATABASE_MOVES", "50"))
FAILURES_FEW, FAILURES = 1, int(os.environ.get("REMORA_DATABASE_FAILURES", "20"))
LONG = (pytest.mark.long, pytest.mark.timeout(7200))
SEED = int(os.environ.get("REMORA_SEED", "1"))
POOL = "/pool"
SETTINGS = {name: {"pool": POOL} for name in NAMES}
INTERVAL_S = 1.0
WAIT_S = 180.0
ROWS_A_MOVE = 25
# Power failures between two orderly moves.
MOVE_EVERY = 5
# An interval and what a sync takes on a machine that runs three kernels at once.
LOST_S_MAX = 60.0


@dataclass(frozen=True, slots=True)
class Load:
    """What a client inserts until the power fails, and the pause after each COMMIT."""

    rows_each: int
    rows_max: int
    pause_s: float


# The large ones change many pages at once.
LOADS = [
    pytest.param(Load(1, 5_000, 0.03), id="small"),
    pytest.param(Load(40, 40_000, 0.3), id="large"),
]
# What is quick of it is in tests/cluster and tests/journal, on one kernel.
pytestmark = pytest.mark.long


@pytest.fixture(scope="module", params=["ext4", "btrfs", "xfs"])
def filesystem(request: pytest.FixtureRequest) -> str:
    """Return the kind of filesystem that the nodes' pools are on."""
    return str(request.param)


@pytest.fixture(scope="module")
def shared_lab(labs: Labs, filesystem: str) -> Lab:
    """Return three nodes with a pool of their own disk."""
    disks = (Disk(filesystem, at=POOL),)
    return labs.lab(Topology.of(*(NodeSpec(name, disks=disks) for name in NAMES)))


class Shop:
    """A database on the volume *name*, and what its clients know of it."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self.servers = {each: Database(cluster[each].node) for each in NAMES}
        # The last row whose commit was acknowledged, and that of the last final sync.
        self.row = self.settled = 0

    def open(self, node: str) -> int:
        """
        Mount the volume on *node* as soon as it may be, and start the server.

        Returns the last row that is there.

        Raises:
            DamagedError: the database does not start, or not as a whole.

        """
        self.servers[node].open(self._mount(self.cluster[node]))
        return self.servers[node].last_row()

    def insert(self, node: str, count: int) -> None:
        """Insert *count* rows; return when all of them are committed."""
        self.servers[node].insert(self.row + 1, count).wait()
        self.row += count

    def close(self, node: str) -> None:
        """Stop the server orderly and unmount."""
        self.servers[node].close()
        self.cluster[node].unmount(self.name)
        self.settled = self.row

    def wait_copied(self, node: str) -> None:
        """Return when a commit is kept that was begun after this call."""
        for which in ("the sync that may run", "the one after it"):
            known = self.cluster[node].facts(self.name)["commit"]
            wait_until(
                lambda known=known: (
                    self.cluster[node].facts(self.name)["commit"] != known
                ),
                timeout_s=WAIT_S,
                what=f"{which} has ended",
                interval_s=0.5,
            )

    def begin_anew(self, node: str) -> None:
        """Put a new database in the place of one that cannot be used."""
        self.servers[node].replace()
        self.row = self.settled = 0

    def _mount(self, member: Member) -> str:
        answers: list[dict[str, str]] = []

        def mounted() -> bool:
            answers.append(member.call("Mount", self.name, ID="id"))
            return "Mountpoint" in answers[-1]

        wait_until(
            mounted,
            timeout_s=WAIT_S,
            what=f"{member.node.name} mounts {self.name}",
            evidence=lambda: answers[-1],
        )
        return answers[-1]["Mountpoint"]


@pytest.fixture
def shop(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Shop]:
    """Return a database on a volume that all nodes keep."""
    name = f"v{abs(hash(request.node.name)) % 10**8}"
    options = {"members": ",".join(NAMES), "interval": f"{INTERVAL_S:.0f}s"}
    # All members have to be known to live.
    wait_until(
        lambda: cluster[NAMES[0]].call("Create", name, Opts=options) == {},
        timeout_s=WAIT_S,
        what="the volume is made",
    )
    for member in cluster.members.values():
        wait_until(lambda m=member: name in m.names(), timeout_s=WAIT_S, what="known")
    shop = Shop(cluster, name)
    yield shop
    for server in shop.servers.values():
        if server.running:
            server.kill()


@pytest.mark.parametrize("moves", [MOVES_FEW, pytest.param(MOVES, marks=LONG)])
def test_orderly_moves_lose_no_committed_row(
    shop: Shop, filesystem: str, moves: int
) -> None:
    """[replication 8] Its data is there, to the last row, on the next node."""
    node = NAMES[0]
    shop.open(node)
    for number in range(moves):
        began_s = time.monotonic()
        node = move(shop, node)
        took_s = time.monotonic() - began_s
        print(
            f"{filesystem}: move {number}: {shop.row} rows, {took_s:.1f} s", flush=True
        )
    shop.close(node)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a power failure has left of the database."""

    acknowledged: int
    # Without the rows of the last final sync.
    carried: int = 0
    lost: int = 0
    lost_s: float = 0.0
    took_s: float = 0.0
    damage: str = ""


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("failures", [FAILURES_FEW, pytest.param(FAILURES, marks=LONG)])
def test_the_power_of_its_node_fails(
    shop: Shop, filesystem: str, failures: int, load: Load
) -> None:
    """What was committed is there up to a moment, and the rest is told."""
    chance = random.Random(SEED)
    outcomes: list[Outcome] = []
    owner = NAMES[0]
    shop.open(owner)
    for number in range(failures):
        if number % MOVE_EVERY == 0:
            owner = move(shop, owner)
        client = shop.servers[owner].insert(
            shop.row + 1, load.rows_max, rows_each=load.rows_each, pause_s=load.pause_s
        )
        # The node that failed before comes back meanwhile.
        shop.cluster.restore()
        shop.wait_copied(owner)
        time.sleep(chance.uniform(0, 4))
        assert not client.failure(), client.failure()
        following = after(owner)
        outcomes.append(fail(shop, owner, following, client, load))
        print(f"{filesystem}: failure {number}: {outcomes[-1]}", flush=True)
        owner = following
    shop.cluster.restore()
    move(shop, owner)
    report(filesystem, outcomes)
    if filesystem in ATOMIC:
        assert not [each for each in outcomes if each.damage]


def after(node: str) -> str:
    """Return the name of the node whose turn is after that of *node*."""
    return NAMES[(NAMES.index(node) + 1) % len(NAMES)]


def move(shop: Shop, node: str) -> str:
    """Return the node to which the database has moved orderly, with all its rows."""
    shop.insert(node, ROWS_A_MOVE)
    shop.close(node)
    assert shop.open(after(node)) == shop.row
    return after(node)


def fail(shop: Shop, first: str, second: str, client: Client, load: Load) -> Outcome:
    """Return what *second* finds after the power of *first* has failed."""
    shop.cluster[first].node.power_off()
    failed_s = time.monotonic()
    committed = client.committed()
    assert committed, "nothing was acknowledged"
    try:
        last = shop.open(second)
    except DamagedError as error:
        shop.begin_anew(second)
        return Outcome(len(committed), damage=str(error))
    took_s = round(time.monotonic() - failed_s, 1)
    # One more may have been committed than its client was told. Each is whole.
    assert shop.row <= committed[-1].number
    assert shop.settled <= last <= committed[-1].number + load.rows_each
    assert last <= shop.row or (last - shop.row) % load.rows_each == 0
    outcome = Outcome(
        len(committed), last - shop.settled, *lost_of(committed, last), took_s
    )
    assert outcome.lost_s < LOST_S_MAX, outcome
    shop.row = last
    return outcome


def lost_of(committed: list[Committed], last: int) -> tuple[int, float]:
    """Return how many rows are behind *last*, and the time in which they came."""
    lost = [each for each in committed if each.number > last]
    if not lost:
        return 0, 0.0
    return len(lost), round(lost[-1].at_s - lost[0].at_s, 1)


def report(filesystem: str, outcomes: list[Outcome]) -> None:
    """Print what the failures came to."""
    started = [each for each in outcomes if not each.damage]
    print(
        f"{filesystem}: {len(outcomes)} power failures, started {len(started)} times,"
        f" of {sum(each.acknowledged for each in started)} rows lost"
        f" {sum(each.lost for each in started)},"
        f" at most {max((each.lost_s for each in started), default=0)} s of them"
    )
