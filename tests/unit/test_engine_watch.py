"""What the look at an engine tells that is not there."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from backends.system import clock
from plugin.engine.engine_api import EngineApi
from plugin.engine.starter import ContainerStarter
from plugin.engine.watch import EngineWatch

PAUSE_S = 0.01


def watch(directory: Path, starter: ContainerStarter | None) -> EngineWatch:
    """Return a look, each hundredth of a second, at an engine that does not run."""
    socket = directory / "docker.sock"
    return EngineWatch(socket, list, starter, interval_s=PAUSE_S)


@pytest.mark.parametrize("written", ["", "not a number", str(2**22 + 1)])
@pytest.mark.parametrize("starts", [True, False])
def test_an_engine_that_does_not_run_is_told_once_where_containers_are_to_be_started(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, written: str, starts: bool
) -> None:
    if written:  # no process has such a number
        (tmp_path / "docker.pid").write_text(written)
    starter = ContainerStarter(
        EngineApi(tmp_path / "docker.sock", timeout_s=1.0),
        driver="remora",
        is_there=lambda _: True,
        was_silent=lambda _: False,
        note=lambda _: None,
    )
    looking = watch(tmp_path, starter if starts else None)
    with caplog.at_level(logging.WARNING):
        looking.start()
        clock.pause(20 * PAUSE_S)
        looking.stop()
    told = [each for each in caplog.messages if "no Docker runs at" in each]
    assert len(told) == starts
