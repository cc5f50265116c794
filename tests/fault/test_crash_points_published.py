"""
SIGKILL between any two steps of a volume's way to a scheduler's path, and back.

The scheduler makes the same call again, or never again: both end as they would have.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from backends.system import mounts
from plugin.volumes.publishing import Wanted
from tests.fault.test_crash_points import check_clean, prepare, recovered
from tests.fault.world import World
from tests.support.fuse import lives

WAIT_S = 20.0


def root(directory: Path) -> Path:
    return directory / "kubelet"


def target(directory: Path) -> Path:
    return root(directory) / "pod/mount"


def publish(world: World) -> None:
    at = world.directory
    wanted = Wanted("v", str(target(at)), str(root(at)), 1, False, {"pod": "a/b"})
    world.volumes.scheduled.publishing.publish(wanted, wait_s=WAIT_S)


def unpublish(world: World) -> None:
    at = world.directory
    world.volumes.scheduled.publishing.unpublish(
        "v", str(target(at)), str(root(at)), wait_s=WAIT_S
    )


def take_away(world: World) -> None:
    record = world.volumes.views.existing("v").record
    world.volumes.unmounting.take_away(record, "another node has taken it")


def begin_again(directory: Path, *, original: Path, published: bool) -> None:
    # The volume, made once, costs more than all the rest.
    subprocess.run(["cp", "-a", f"{original}/.", directory], check=True, timeout=10)
    target(directory).parent.mkdir(parents=True)
    if published:
        world = World(directory)
        publish(world)
        world.close()


@pytest.mark.parametrize(
    ("act", "published"), [(publish, False), (unpublish, True), (take_away, True)]
)
def test_a_kill_at_any_step_is_repaired(
    act: Callable[[World], None], published: bool, disk: Path
) -> None:
    original = disk / "original"
    original.mkdir()
    prepare(original, mounted=False)
    begin = partial(begin_again, original=original, published=published)
    steps = 0
    for directory, life in lives(disk, begin, World, act):
        world = recovered(directory)
        at = target(directory)
        is_bound = mounts.mounted_at(at) is not None
        # What the kernel shows is held; and nothing else, though nobody asks again.
        assert bool(world.node.references.volumes()) == is_bound
        if not is_bound:
            assert list((directory / "mounts").iterdir()) == []
        if not life.died:
            assert is_bound == (act is publish)
            assert at.is_file() == (act is take_away)
        publish(world)
        table = [each.mount_point for each in mounts.mount_table()]
        assert table.count(str(at)) == 1
        assert (at / "file").read_text() == "precious"
        unpublish(world)
        assert list(at.parent.iterdir()) == []
        check_clean(world, directory)
        world.close()
        steps = len(life.steps)
    assert steps > 3
