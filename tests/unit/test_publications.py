"""What is at a scheduler's path is in use, whatever a backend can tell of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.errors import VolumeBusyError
from backends.system.clock import Deadline
from plugin.volumes.publications import Publication
from tests.support.world import World

# A mount point of every machine, and a directory that is none.
SHOWN, GONE = "/proc", "/proc/self"


def published(world: World, path: str) -> Publication:
    world.volumes.creation.create("v", {})
    made = Publication(
        target=path,
        path=path,
        root="/",
        volume_id=world.volume_id("v"),
        mode=1,
        read_only=False,
        user={"pod": "shop/db-0"},
    )
    world.node.references.publications.put(made)
    return made


def test_it_is_in_use_where_no_backend_tells_of_it(tmp_path: Path) -> None:
    """The kernel shows all mounts of a share alike: ours are none of its users."""
    world = World(tmp_path)
    published(world, SHOWN)
    record = world.volumes.views.existing("v").record
    unmounting = world.volumes.unmounting
    assert not unmounting.unmount_if_unused(record, Deadline(5))
    with pytest.raises(VolumeBusyError, match="is published at /proc"):
        unmounting.require_unused(record)
    assert world.count("v").inherited == 1
    world.close()


def test_it_is_let_go_where_nothing_is(tmp_path: Path) -> None:
    world = World(tmp_path)
    published(world, GONE)
    record = world.volumes.views.existing("v").record
    assert world.volumes.unmounting.unmount_if_unused(record, Deadline(5))
    assert not world.count("v")
    world.close()


def test_a_young_one_is_believed(tmp_path: Path) -> None:
    world = World(tmp_path, grace_s=60)
    published(world, GONE)
    record = world.volumes.views.existing("v").record
    assert not world.volumes.unmounting.unmount_if_unused(record, Deadline(5))
    with pytest.raises(VolumeBusyError, match="is being published"):
        world.volumes.unmounting.require_unused(record)
    world.close()


def test_they_are_of_one_boot(tmp_path: Path) -> None:
    world = World(tmp_path)
    made = published(world, GONE)
    publications = world.node.references.publications
    world.restart()
    again = world.node.references.publications
    assert again is not publications
    assert again.at(made.target) == made
    assert again.of(made.volume_id) == [made]
    again.drop(made.target)
    again.drop(made.target)
    assert again.volumes() == set()
    world.close()
