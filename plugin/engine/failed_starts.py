"""
Containers that are down because a volume of ours could not be mounted.

Docker applies a restart policy to a container that ends. One whose start fails while
dockerd starts is left `exited` for ever. What dockerd keeps of it (20.10 to 28): the
exit code that the container had before, and the reason in `State.Error`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from backends.errors import one_line
from plugin.engine.engine_api import EngineApi
from plugin.errors import EngineError

# More are not looked at in one turn.
_CONTAINERS_MAX: Final = 1000
_POLICIES: Final = ("always", "unless-stopped", "on-failure")
_NOT_MOUNTED: Final = re.compile(
    r"error while mounting volume '[^']*': (.*)", re.DOTALL
)
# What our answers begin with. Those of the driver `local` begin with several words.
_CODE: Final = re.compile(r"[A-Za-z][A-Za-z-]*: ")


@dataclass(frozen=True, slots=True)
class FailedStart:
    """A container with a restart policy whose start failed for one of *volumes*."""

    id: str
    name: str
    policy: str
    volumes: tuple[str, ...]
    error: str


def failed_starts(
    engine: EngineApi, driver: str, *, but: Container[str] = ()
) -> list[FailedStart]:
    """
    Return the containers that are down for a volume of *driver*, *but* for those.

    None is among them that a user stopped, or that ended by itself: those have no error
    of a start. Nor is one that never ran: who made it has seen the error.

    Raises:
        EngineError: the engine did not answer.

    """
    filters = quote(json.dumps({"status": ["exited"]}))
    found = []
    listed = engine.call("GET", f"/containers/json?all=1&filters={filters}")
    for each in listed[:_CONTAINERS_MAX]:
        is_of_it = any(_is_of(driver, mount) for mount in each.get("Mounts") or ())
        if not is_of_it or each["Id"] in but:
            continue
        try:
            facts = engine.call("GET", f"/containers/{each['Id']}/json")
        except EngineError:
            continue  # it was removed meanwhile, or the engine says at the next turn
        if failed := _failed(facts, driver):
            found.append(failed)
    return found


def _failed(facts: Mapping[str, Any], driver: str) -> FailedStart | None:
    state, policy = facts["State"], facts["HostConfig"]["RestartPolicy"]["Name"]
    mounts = facts.get("Mounts") or ()
    ours = tuple(each["Name"] for each in mounts if _is_of(driver, each))
    others = any(
        each.get("Driver") not in (None, "", "local")
        for each in mounts
        if not _is_of(driver, each)
    )
    if state["Status"] != "exited" or policy not in _POLICIES or not ours:
        return None
    error = state.get("Error") or ""
    if not is_for_a_volume(error, driver, others=others):
        return None
    name = str(facts["Name"]).removeprefix("/")
    return FailedStart(str(facts["Id"]), name, policy, ours, one_line(error))


def is_for_a_volume(error: str, driver: str, *, others: bool) -> bool:
    """
    Return whether *error* of a start says that *driver* did not mount a volume.

    It may not name the driver; with volumes of *others* nobody knows whose it is then.
    """
    if re.search(rf"\b(?:driver|plugin) \"?{re.escape(driver)}\b", error):
        return True
    mounting = _NOT_MOUNTED.search(error)
    if mounting is None or others:
        return False
    return bool(_CODE.match(mounting[1])) or "VolumeDriver." in mounting[1]


def _is_of(driver: str, mount: Mapping[str, Any]) -> bool:
    """Return whether *mount* is a volume of *driver*, be it a managed plugin."""
    named = str(mount.get("Driver") or "").rpartition("/")[2].partition(":")[0]
    return mount.get("Type") == "volume" and named == driver
