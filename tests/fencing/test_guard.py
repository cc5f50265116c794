"""Writers stop at the deadline, and go on or die, whoever else lives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fencing.world import (
    FENCED_WITHIN_S,
    FORK,
    WRITE,
    Daemon,
    Volume,
    container,
)

SCRIPTS = {"writing": WRITE, "forking": FORK}
HOLD_S = 1.5


@pytest.mark.parametrize("script", SCRIPTS)
def test_frozen_at_the_deadline_and_thawed(
    daemon: Daemon, volume: Volume, script: str
) -> None:
    with container(volume, SCRIPTS[script]) as process:
        volume.wait_writing()
        held = volume.held(HOLD_S)
        assert daemon.hold(held) == {volume.id: "running"}
        volume.wait_writing()
        daemon.wait_state(volume, "frozen")
        volume.assert_quiet_since(held.deadline_s + FENCED_WITHIN_S)
        assert daemon.hold(volume.held(60)) == {volume.id: "running"}
        volume.wait_writing()
        assert process.poll() is None
