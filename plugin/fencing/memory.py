"""
What the guard has stopped, in a file, for the guard that comes after it.

The file is replaced by a rename, without waiting for the disk: it must survive a killed
process, not a power loss, after which nothing is stopped any more.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from backends.system import clock
from plugin.fencing.freezer import Target
from plugin.fencing.held import HeldVolume

FILE_NAME: Final = "fenced.json"


@dataclass(slots=True)
class Fence:
    """A volume whose writers are stopped; ``targets``: whether we have to thaw each."""

    volume: HeldVolume
    since_s: float
    kill: bool = False
    killed: bool = False
    targets: dict[Target, bool] = field(default_factory=dict)


@dataclass(slots=True)
class Pause:
    """A volume whose writers stand still for a commit; ``targets`` as a fence's."""

    until_s: float
    targets: dict[Target, bool]


@dataclass(slots=True)
class Memory:
    """All that a guard has to know."""

    held: dict[str, HeldVolume] = field(default_factory=dict)
    fences: dict[str, Fence] = field(default_factory=dict)
    pauses: dict[str, Pause] = field(default_factory=dict)


def load(run_dir: str) -> Memory:
    """Return what the last guard of this boot wrote; nothing if there was none."""
    try:
        with open(f"{run_dir}/{FILE_NAME}", encoding="utf-8") as file:
            content = json.load(file)
        if content["boot_id"] != clock.boot_id():
            return Memory()
        held = [_volume(each) for each in content["held"]]
        fences = [_fence(each) for each in content["fences"]]
        return Memory(
            {volume.id: volume for volume in held},
            {fence.volume.id: fence for fence in fences},
            {
                volume_id: Pause(each["until_s"], _targets(each["targets"]))
                for volume_id, each in content.get("pauses", {}).items()
            },
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Memory()


def save(run_dir: str, memory: Memory) -> None:
    """Write *memory* down; without a place for it fencing goes on all the same."""
    content = {
        "boot_id": clock.boot_id(),
        "held": [asdict(volume) for volume in memory.held.values()],
        "fences": [_plain(fence) for fence in memory.fences.values()],
        "pauses": {
            volume_id: {"until_s": each.until_s, "targets": _listed(each.targets)}
            for volume_id, each in memory.pauses.items()
        },
    }
    path = f"{run_dir}/{FILE_NAME}"
    with suppress(OSError):
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            json.dump(content, file)
        os.replace(f"{path}.new", path)


def _plain(fence: Fence) -> dict[str, Any]:
    return {
        "volume": asdict(fence.volume),
        "since_s": fence.since_s,
        "kill": fence.kill,
        "killed": fence.killed,
        "targets": _listed(fence.targets),
    }


def _listed(targets: Mapping[Target, bool]) -> list[Any]:
    return [[asdict(target), ours] for target, ours in targets.items()]


def _targets(listed: Iterable[Any]) -> dict[Target, bool]:
    return {Target(**target): ours for target, ours in listed}


def _volume(plain: dict[str, Any]) -> HeldVolume:
    """Return a volume, which another version may have written with other fields."""
    known = {each.name for each in fields(HeldVolume)}
    return HeldVolume(**{key: value for key, value in plain.items() if key in known})


def _fence(plain: dict[str, Any]) -> Fence:
    return Fence(
        volume=_volume(plain["volume"]),
        since_s=plain["since_s"],
        kill=plain["kill"],
        killed=plain["killed"],
        targets=_targets(plain["targets"]),
    )
