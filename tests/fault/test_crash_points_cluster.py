"""
SIGKILL between any two steps by which a node comes to own a volume and lets it go.

Two nodes share one store, a SQLite file here: it is as durable as etcd and has leases.
One of them dies at its n-th step; then the other tries to mount, and then the first,
started anew. Whoever may, has all that was written; nobody begins empty.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from backends.errors import RemoraError
from backends.registry import Registry
from backends.rsync.backend import RsyncBackend
from backends.system import clock, mounts
from plugin.catalogue import Catalogue
from plugin.cluster.heads import Heads
from plugin.cluster.membership import Membership
from plugin.cluster.nodes import Identity
from plugin.cluster.ownership import Ownership
from plugin.cluster.registration import Sources
from plugin.cluster.replicas import Replicas, locate_with
from plugin.cluster.state import Head
from plugin.cluster.votes import Votes, Witness
from plugin.discovery import Discovery
from plugin.errors import NotOwnerError, PeerUnreachableError
from plugin.node import Node
from plugin.operations import Operations
from plugin.options import OptionResolver
from plugin.propagation import Propagation
from plugin.reconciler import Reconciler
from plugin.service import VolumeService
from plugin.store.sqlite import SqliteStore
from tests.fault.test_crash_points import STEPS_MAX, Fuse
from tests.support.namespaces import enter_private_mounts

TTL_S = 3600.0


class SharedStore(SqliteStore):
    """A store with what only etcd's has: leases that nobody needs to watch."""

    def lease_ends_s(self, lease: int) -> float | None:
        del lease
        return clock.boottime_s() + TTL_S


class World:
    """One start of the inside of node *name*'s daemon, which has joined the cluster."""

    def __init__(self, directory: Path, name: str) -> None:
        self.others: dict[str, World] = {}
        home = directory / name
        (home / "mounts").mkdir(parents=True, exist_ok=True)
        self.home = home
        self.node = Node(home)
        self.store = SharedStore(directory / "store.db")
        self.pool = RsyncBackend(home / "pool", pool_id=self.node.fact("pool_id"))
        if self.node.fact("pool_id") is None:
            self.node.set_fact("pool_id", self.pool.pool.initialise())
        registry = Registry([self.pool])
        catalogue = Catalogue(self.store)
        operations = Operations()
        self.membership = self._membership(name)
        self.ownership = Ownership(
            heads=Heads(self.store),
            replicas=Replicas(locate_with(self.pool)),
            membership=self.membership,
            registry=registry,
            votes=Votes(self, node_id=self.node.id),
        )
        self.service = VolumeService(
            catalogue=catalogue,
            registry=registry,
            resolver=OptionResolver(registry, {}),
            references=self.node.references,
            operations=operations,
            discovery=Discovery(
                catalogue=catalogue,
                registry=registry,
                references=self.node.references,
                locks=operations.locks,
            ),
            ownership=self.ownership,
            keeper=None,
            propagation=Propagation(home / "mounts", self.node),
            mount_dir=home / "mounts",
            mount_deadline_s=30,
            disuse_grace_s=0,
        )
        self.witness = self._witness(catalogue)
        self.reconciler = Reconciler(self.service, interval_s=10.0)
        self.membership.start()
        assert self.membership.fault() is None

    def _witness(self, catalogue: Catalogue) -> Witness:
        return Witness(
            heads=self.ownership.heads,
            replicas=self.ownership.replicas,
            find=lambda volume: getattr(catalogue.find(volume), "record", None),
            stop_writers=lambda _: True,
            require_free=lambda _: None,
            node_id=self.ownership.node_id,
        )

    def _membership(self, name: str) -> Membership:
        own = Identity(
            id=self.node.id,
            name=name,
            peer_port=7424,
            host_key="ssh-ed25519 AAAA",
            public_key=f"ssh-ed25519 {name}",
            machine_id=name,
            boot_id=clock.boot_id(),
            session=self.node.id,
        )
        return Membership(
            self.store,
            own,
            facts=self.node,
            leases=self.store,
            ttl_s=TTL_S,
            sources=Sources(capacity=lambda: (0, 0), addresses=lambda _: ("::1",)),
            data_only_on=lambda _: [],
        )

    def call_all(
        self,
        node_ids: Sequence[str],
        request: str,
        body: Mapping[str, Any],
        *,
        deadline_s: float,
    ) -> dict[str, Mapping[str, Any] | RemoraError]:
        """Ask the *others*; those that do not live are silent. See `votes.Asks`."""
        del request, deadline_s
        answers: dict[str, Mapping[str, Any] | RemoraError] = {}
        for node_id in node_ids:
            try:
                if node_id not in self.others:
                    raise PeerUnreachableError("dead")
                answers[node_id] = self.others[node_id].witness.promise(
                    self.node.id, body
                )
            except RemoraError as error:
                answers[node_id] = error
        return answers

    def meet(self, other: World) -> None:
        """Let the two ask each other."""
        self.others[other.node.id] = other
        other.others[self.node.id] = self

    def head(self) -> Head:
        record = self.service.existing("v").record
        return self.ownership.heads.read(record.id).head or Head()

    def mount(self) -> Path:
        return self.service.mount("v", "engine")

    def content(self) -> str | None:
        """Return what this node's copy holds; None if there is no file in it."""
        live = (
            self.home / "pool/volumes" / self.service.existing("v").record.id / "live"
        )
        file = live / "file"
        return file.read_text() if file.exists() else None

    def close(self) -> None:
        self.membership.stop()
        self.store.close()
        self.node.close()


def first_mount(world: World) -> None:
    """Begin a volume that another node has made, write to it, and let it go."""
    (world.mount() / "file").write_text("precious")
    world.service.unmount("v", "engine")


def next_mount(world: World) -> None:
    """Go on with a volume that this node has."""
    (world.mount() / "more").write_text("precious too")
    world.service.unmount("v", "engine")


def dies(directory: Path, act: Callable[[World], None], fatal_step: int) -> bool:
    """Do *act* on alpha in a child that dies at *fatal_step*; return whether it did."""
    child = os.fork()
    if child == 0:
        try:
            fuse = Fuse(fatal_step)
            fuse.wire()
            world = World(directory, "alpha")
            world.others[beta_id(directory)] = World(directory, "beta")
            fuse.lit = True
            act(world)
        except BaseException as error:  # noqa: BLE001 - told to the parent
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def beta_id(directory: Path) -> str:
    node = Node(directory / "beta")
    try:
        return node.id
    finally:
        node.close()


def prepare(directory: Path, *, written: bool) -> None:
    """Make volume `v` on beta; with *written*, mount it on alpha once."""
    beta = World(directory, "beta")
    beta.service.create("v", {})
    if written:
        alpha = World(directory, "alpha")
        alpha.meet(beta)
        first_mount(alpha)
        alpha.close()
    beta.close()


def check_other(beta: World, *, written: str | None) -> None:
    """Assert that beta mounts the volume only if alpha never wrote to it."""
    before = beta.head()
    try:
        beta.mount()
    except NotOwnerError as error:
        assert "'alpha'" in str(error) or "another node" in str(error), error
        assert not mounts.mount_points_below(beta.home)
        assert beta.head().epoch >= before.epoch
        return
    assert written is None
    assert beta.head().epoch > before.epoch
    beta.service.unmount("v", "engine")
    assert beta.head().phase == "idle"


@pytest.mark.parametrize(
    "lease_over", [pytest.param(False, marks=pytest.mark.long), True]
)
@pytest.mark.parametrize("act", [first_mount, next_mount])
def test_a_kill_at_any_step_leaves_what_the_next_owner_understands(
    act: Callable[[World], None], lease_over: bool, tmp_path: Path
) -> None:
    enter_private_mounts()
    begun = set()
    for step in range(1, STEPS_MAX):
        directory = tmp_path / str(step)
        prepare(directory, written=act is next_mount)
        died = dies(directory, act, step)
        beta = World(directory, "beta")
        written = alpha_content(directory, beta)
        before = beta.head()
        assert act is first_mount or written == "precious"
        if lease_over:
            end_lease(beta)
        check_other(beta, written=written)
        alpha = World(directory, "alpha")
        alpha.meet(beta)
        alpha.reconciler.run_once()
        alpha.reconciler.run_once()
        assert mounts.mount_points_below(alpha.home) == []
        assert alpha.head().epoch >= before.epoch
        assert alpha.head().phase == "idle"
        begun.add(before.phase)
        owner = alpha if written is not None or not beta.head().holders else None
        if owner is not None:
            owner.mount()
            assert owner.content() == written
            owner.service.unmount("v", "engine")
        lineage = alpha.ownership.heads.lineage(alpha.service.existing("v").record.id)
        assert max(lineage.epochs, default=0) <= alpha.head().epoch
        for number, epoch in lineage.epochs.items():
            assert epoch.base.epoch < number
        alpha.close()
        beta.close()
        if not died:
            print(f"{act.__name__}: {step - 1} steps, {begun}", file=sys.stderr)
            assert step > 20
            assert begun >= {"idle", "recovering", "owned"}
            return
    pytest.fail(f"still dying at step {STEPS_MAX}")


def alpha_content(directory: Path, beta: World) -> str | None:
    """Return what alpha has written, as its disk has it."""
    volume_id = beta.service.existing("v").record.id
    file = directory / "alpha/pool/volumes" / volume_id / "live/file"
    return file.read_text() if file.exists() else None


def end_lease(world: World) -> None:
    """End the lease that the volume's lock hangs on, if it has one."""
    standing = world.ownership.heads.read(world.service.existing("v").record.id)
    if standing.lock is not None:
        world.store.revoke_lease(standing.lock_lease)
