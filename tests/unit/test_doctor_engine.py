"""`remora doctor`'s checks of what an engine is."""

from __future__ import annotations

import pytest

from plugin.cli.doctor_engine import mapped_or_labelled


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
