"""A copy that is made empty says so from the moment in which it is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.system import files
from plugin.ownership.state import EMPTY, FILLED
from tests.fault.two_nodes import World
from tests.support.namespaces import enter_private_mounts


class CrashError(Exception):
    """The daemon has ended here."""


def test_a_crash_never_leaves_an_empty_copy_that_counts_as_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter_private_mounts()
    world = World(tmp_path, "alpha")
    world.volumes.creation.create("v", {})
    volume = world.volumes.views.existing("v").record.volume()
    world.pool.discard(volume, deadline_s=30)
    write_durably = files.write_durably

    def crash_after(path: Path, content: bytes) -> None:
        write_durably(path, content)
        if path.name == "volume.json":
            raise CrashError

    monkeypatch.setattr(files, "write_durably", crash_after)
    states = world.ownership.copy_states
    with pytest.raises(CrashError):
        states.make(world.pool, volume, promised=7, deadline_s=30)
    copy = states.read(volume.id, initial=FILLED)
    assert copy is not None
    assert (copy.promised, copy.commit) == (7, EMPTY)
    world.close()
