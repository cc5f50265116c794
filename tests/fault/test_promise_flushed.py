"""What a node votes for is on its disk: power may fail as soon as it has voted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from plugin.errors import NotOwnerError
from plugin.ownership.heads import drop_lock
from tests.fault.two_nodes import World
from tests.support.namespaces import enter_private_mounts, loop_filesystem

WRITTEN = b"what a container wrote, and no one flushed"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    enter_private_mounts()
    with loop_filesystem(tmp_path, "ext4", size="64M") as disk:
        yield disk


def test_a_former_owners_bytes_are_flushed_before_it_votes(
    disk: Path, tmp_path: Path
) -> None:
    alpha, beta = World(disk, "alpha"), World(disk, "beta")
    alpha.meet(beta)
    alpha.volumes.creation.create("v", {})
    (alpha.mount() / "file").write_bytes(WRITTEN)
    image = tmp_path / "ext4.image"
    assert WRITTEN not in image.read_bytes()
    record = alpha.volumes.views.existing("v").record
    alpha.store.transact([], [drop_lock(record.id)])
    # It asks alpha, which votes; the bytes it could fetch only in a real cluster.
    with suppress(NotOwnerError):
        beta.mount()
    copy = alpha.ownership.copy_state(record)
    assert copy is not None
    assert copy.promised == beta.head().epoch
    assert copy.live_epoch == 0
    assert WRITTEN in image.read_bytes()
    for each in (alpha, beta):
        each.close()


def test_an_owner_that_begins_anew_votes_for_what_is_on_its_disk(
    disk: Path, tmp_path: Path
) -> None:
    alpha = World(disk, "alpha")
    alpha.volumes.creation.create("v", {})
    (alpha.mount() / "file").write_bytes(WRITTEN)
    record = alpha.volumes.views.existing("v").record
    alpha.ownership.boot_id = "another"  # it cannot just go on
    image = tmp_path / "ext4.image"
    assert WRITTEN not in image.read_bytes()
    with suppress(NotOwnerError):
        alpha.mount()
    copy = alpha.ownership.copy_state(record)
    assert copy is not None
    assert copy.promised > 1
    assert WRITTEN in image.read_bytes()
    alpha.close()
