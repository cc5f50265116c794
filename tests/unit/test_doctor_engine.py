"""`remora doctor`'s checks of what an engine is, and of what it has left down."""

from __future__ import annotations

import pytest

from plugin.cli.doctor_engine import (
    SeenByEngine,
    mapped_or_labelled,
    stopped_containers,
)
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


@pytest.mark.parametrize(
    ("options", "root", "profiles", "found"),
    [
        (["name=seccomp,profile=default"], "/var/lib/docker", {}, []),
        (None, "/var/lib/docker", {}, []),
        (
            ["name=seccomp,profile=default", "name=userns"],
            "/var/lib/docker/231072.231072",
            {"fast": {"uid": "231072", "gid": "231072"}},
            [("warning", "-o uid=231072 -o gid=231072")],
        ),
        (
            ["name=userns"],
            "/srv/100000.100001/docker/100000.100001",
            {"default": {"uid": "100000", "gid": "100001"}},
            [("ok", "")],
        ),
        (
            ["name=userns"],
            "/var/lib/docker/100000.100000",
            {"default": {"uid": "100000"}},
            [("warning", "[profiles.default]")],
        ),
        (["name=rootless"], "/home/u/.local/share/docker", {}, [("failed", "as root")]),
        (["name=selinux"], "/var/lib/docker", {}, [("warning", ":z")]),
    ],
)
def test_an_engine_whose_containers_cannot_write_is_told_of(
    options: list[str] | None,
    root: str,
    profiles: dict[str, dict[str, str]],
    found: list[tuple[str, str]],
) -> None:
    told = {"SecurityOptions": options, "DockerRootDir": root}
    findings = list(mapped_or_labelled(told, profiles))
    assert [each.verdict for each in findings] == [verdict for verdict, _ in found]
    for each, (_, hint) in zip(findings, found, strict=True):
        assert hint in each.hint
