"""What a check of `remora doctor` finds; and what an engine tells of itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

Verdict = Literal["ok", "warning", "failed"]
# What moby appends to its directory for the user that root of containers is outside.
_MAPPED: Final = re.compile(r"/([0-9]{1,10})\.([0-9]{1,10})$")
_GUIDE: Final = "docs/guides/engines.md"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's result."""

    check: str
    verdict: Verdict
    evidence: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Docker:
    """What the engine tells: the names of its own driver's volumes, and of itself."""

    local_volumes: list[str]
    info: Mapping[str, Any]


NO_DOCKER: Final = Docker([], {})


def of_engine(
    told: Mapping[str, Any], profiles: Mapping[str, Mapping[str, str]]
) -> Iterator[Finding]:
    """
    Tell of what in an engine keeps containers from writing to a new volume.

    *told* is the answer to `GET /info`, {} without an engine. Source: moby,
    daemon/info.go and cmd/dockerd/config_unix.go.
    """
    options = {
        each.partition(",")[0].removeprefix("name=")
        for each in told.get("SecurityOptions") or []
    }
    if "rootless" in options:
        yield Finding(
            "engine",
            "failed",
            "it is rootless: its user may not speak to this daemon",
            f"run dockerd as root, with userns-remap if need be: {_GUIDE}",
        )
    elif "userns" in options:
        yield _of_mapped(told, profiles)
    if "selinux" in options:
        yield Finding(
            "engine labels",
            "warning",
            "it labels containers (SELinux): they see what has the type "
            "container_file_t alone",
            f"give the pool that type, or mount volumes with :z: {_GUIDE}",
        )


def _of_mapped(
    told: Mapping[str, Any], profiles: Mapping[str, Mapping[str, str]]
) -> Finding:
    found = _MAPPED.search(str(told.get("DockerRootDir")))
    uid, gid = found.groups() if found else ("UID", "GID")
    mapped = f"it maps root of containers to user {uid} (userns-remap)"
    default = profiles.get("default", {})
    if found and (default.get("uid"), default.get("gid")) == (uid, gid):
        return Finding("engine", "ok", f"{mapped}, to whom new volumes belong")
    return Finding(
        "engine",
        "warning",
        f"{mapped}, who cannot write to a new volume",
        f'let it own them: -o uid={uid} -o gid={gid}, or uid = "{uid}" and '
        f'gid = "{gid}" in [profiles.default] of remora.toml',
    )
