"""Checks of what Docker makes of our volumes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from plugin.cli.finding import Finding
from plugin.engine.failed_starts import FailedStart
from plugin.engine.local_volumes import hidden

_NAMED_MAX: Final = 10


@dataclass(frozen=True, slots=True)
class SeenByEngine:
    """What Docker tells: volumes of its own driver, containers that are down for us."""

    local_volumes: Sequence[str] = ()
    failed_starts: Sequence[FailedStart] = ()


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
            hint = f"the daemon does that {when_there}; after 5 attempts it does not"
        else:
            hint = f"{when_there}; or start_containers = true in [daemon]"
        yield Finding(
            "container",
            "warning",
            f"'{each.name}' (restart policy {each.policy}) is down, and Docker does "
            f"not start it again: {each.error}",
            hint,
        )
