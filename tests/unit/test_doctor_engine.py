"""`remora doctor`: containers that Docker does not start again."""

from __future__ import annotations

import pytest

from plugin.cli.doctor_engine import SeenByEngine, stopped_containers
from plugin.engine.failed_starts import FailedStart

FAILED = FailedStart("1", "web", "always", ("rows",), "error while mounting volume")


@pytest.mark.parametrize("starts", [False, True])
def test_containers_that_docker_does_not_start_again(starts: bool) -> None:
    seen = SeenByEngine(failed_starts=[FAILED])
    [warned] = stopped_containers(seen, starts=starts)
    assert (warned.check, warned.verdict) == ("container", "warning")
    assert warned.evidence.startswith("'web' (restart policy always) is down")
    assert "docker start web" in warned.hint
    assert ("start_containers = true" in warned.hint) is not starts
