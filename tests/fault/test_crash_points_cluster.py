"""
SIGKILL between any two steps by which a node comes to own a volume and lets it go.

Two nodes share one store, a SQLite file here: it is as durable as etcd and has leases.
One of them dies at its n-th step; then the other tries to mount, and then the first,
started anew. Whoever may, has all that was written; nobody begins empty.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from backends.system import mounts
from plugin.daemon.node import Node
from plugin.errors import NotOwnerError
from tests.fault.two_nodes import World
from tests.fault.world import PATIENCE_S
from tests.support.fuse import lives

# Of the Mount of a node that waits, for half of it, for the dead one to come back.
SHORT_MOUNT_S = 8.0


def first_mount(world: World) -> None:
    """Begin a volume that another node has made, write to it, and let it go."""
    (world.mount() / "file").write_text("precious")
    world.volumes.unmounting.unmount("v", "engine")


def next_mount(world: World) -> None:
    """Go on with a volume that this node has."""
    (world.mount() / "more").write_text("precious too")
    world.volumes.unmounting.unmount("v", "engine")


def start(directory: Path) -> World:
    """Start alpha anew, which can ask beta."""
    alpha = World(directory, "alpha")
    alpha.others[beta_id(directory)] = World(directory, "beta")
    return alpha


def beta_id(directory: Path) -> str:
    node = Node(directory / "beta")
    try:
        return node.id
    finally:
        node.close()


def prepare(directory: Path, *, written: bool) -> None:
    """Make volume `v` on beta; with *written*, mount it on alpha once."""
    beta = World(directory, "beta")
    beta.volumes.creation.create("v", {})
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
    beta.volumes.unmounting.unmount("v", "engine")
    assert beta.head().phase == "idle"


@pytest.mark.parametrize(
    "lease_over", [pytest.param(False, marks=pytest.mark.long), True]
)
@pytest.mark.parametrize("act", [first_mount, next_mount])
def test_a_kill_at_any_step_leaves_what_the_next_owner_understands(
    act: Callable[[World], None], lease_over: bool, disk: Path
) -> None:
    begun = set()
    steps = 0
    for directory, life in lives(
        disk, lambda at: prepare(at, written=act is next_mount), start, act
    ):
        beta = World(directory, "beta", mount_deadline_s=SHORT_MOUNT_S)
        written = alpha_content(directory, beta)
        before = beta.head()
        assert act is first_mount or written == "precious"
        if lease_over:
            end_lease(beta)
        check_other(beta, written=written)
        alpha = World(directory, "alpha")
        alpha.meet(beta)
        alpha.volumes.reconciler.run_once(patience_s=PATIENCE_S)
        alpha.volumes.reconciler.run_once(patience_s=PATIENCE_S)
        assert mounts.mount_points_below(alpha.home) == []
        assert alpha.head().epoch >= before.epoch
        assert alpha.head().phase == "idle"
        begun.add(before.phase)
        owner = alpha if written is not None or not beta.head().holders else None
        if owner is not None:
            owner.mount()
            assert owner.content() == written
            owner.volumes.unmounting.unmount("v", "engine")
        check_lineage(alpha)
        alpha.close()
        beta.close()
        steps = len(life.steps)
    assert steps > 20
    assert begun >= {"idle", "recovering", "owned"}


def check_lineage(world: World) -> None:
    """Assert that each epoch is based on an older one."""
    lineage = world.ownership.heads.lineage(world.volumes.views.existing("v").record.id)
    assert max(lineage.epochs, default=0) <= world.head().epoch
    for number, epoch in lineage.epochs.items():
        assert epoch.base.epoch < number


def alpha_content(directory: Path, beta: World) -> str | None:
    """Return what alpha has written, as its disk has it."""
    volume_id = beta.volumes.views.existing("v").record.id
    file = directory / "alpha/pool/volumes" / volume_id / "live/file"
    return file.read_text() if file.exists() else None


def end_lease(world: World) -> None:
    """End the lease that the volume's lock hangs on, if it has one."""
    state = world.ownership.heads.read(world.volumes.views.existing("v").record.id)
    if state.lock is not None:
        world.store.revoke_lease(state.lock_lease)
