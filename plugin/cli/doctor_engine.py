"""Checks of what Docker makes of our volumes, and of what it is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from plugin.cli.finding import Finding
from plugin.engine.failed_starts import FailedStart
from plugin.engine.local_volumes import hidden

_NAMED_MAX: Final = 10
# What moby appends to its directory for the user that root of containers is outside.
_MAPPED: Final = re.compile(r"/([0-9]{1,10})\.([0-9]{1,10})$")
_GUIDE: Final = "docs/guides/engines.md"


@dataclass(frozen=True, slots=True)
class SeenByEngine:
    """
    What Docker tells: volumes of its own driver, containers that are down for us.

    ``info`` is what it tells of itself, the answer to `GET /info`.
    """

    local_volumes: Sequence[str] = ()
    failed_starts: Sequence[FailedStart] = ()
    info: Mapping[str, Any] = field(default_factory=dict)


def hidden_volumes(ours: Iterable[str], seen: SeenByEngine) -> Iterator[Finding]:
    """Warn of volumes of ours that Docker does not mean by their names."""
    for name in hidden(ours, seen.local_volumes)[:_NAMED_MAX]:
        yield Finding(
            "volume",
            "warning",
            f"Docker uses a volume of its own driver, 'local', for the name '{name}'",
            f"docker volume rm {name}, once you have its bytes; or: remora import",
        )


def stopped_containers(seen: SeenByEngine, *, starts: bool) -> Iterator[Finding]:
    """Warn of containers that Docker will not start again; *starts*: we do."""
    for each in seen.failed_starts[:_NAMED_MAX]:
        when_there = f"when its storage is there: docker start {each.name}"
        if starts:
            hint = f"the daemon does that {when_there}; five times at most"
        else:
            hint = f"{when_there}; or start_containers = true in [daemon]"
        yield Finding(
            "container",
            "warning",
            f"'{each.name}' (restart policy {each.policy}) is down, and Docker does "
            f"not start it again: {each.error}",
            hint,
        )


def mapped_or_labelled(
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
