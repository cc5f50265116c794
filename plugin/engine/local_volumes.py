"""
Volumes of Docker's own driver, `local`, that stand in the place of ours.

`docker run -v rows:/d` names no driver: while ours does not know `rows`, or does not
answer, Docker makes an empty volume of its own, and means that one from then on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from urllib.parse import quote

from plugin.engine.engine_api import EngineApi


def local_volumes(engine: EngineApi) -> list[str]:
    """Return the names of the volumes of driver `local`; raises EngineError."""
    filters = quote(json.dumps({"driver": ["local"]}))
    found = engine.call("GET", f"/volumes?filters={filters}")
    return [each["Name"] for each in found.get("Volumes") or []]


def hidden(ours: Iterable[str], local: Iterable[str]) -> list[str]:
    """Return which of *our* volumes Docker does not mean by their names."""
    return sorted(set(ours).intersection(local))
