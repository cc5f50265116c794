"""The commands that run programs of ours, which are to be there in milliseconds."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from types import ModuleType

from backends.system import jailed
from backends.system.jail import READING, Shown


def own_program(
    module: ModuleType, *arguments: str, packages: bool = False
) -> list[str]:
    """
    Return the command that runs `main` of *module*, one of ours, in a bare Python.

    For work that may have to be killed. The module may import the standard library and
    its like alone, with *packages* also those that we depend on.
    """
    root = str(Path(__file__).resolve().parents[2])
    script = (
        f"import sys; sys.path.insert(0, {root!r}); "
        f"from {module.__name__} import main; main()"
    )
    # -I -S: no site-packages and nobody's environment: half the time to start.
    return [sys.executable, "-I" if packages else "-IS", "-c", script, *arguments]


def in_jail(
    command: Sequence[str],
    *shown: Shown,
    capabilities: Collection[int] = READING,
    beside: Sequence[str] = (),
) -> list[str]:
    """
    Return the command that runs *command* where it sees but programs and *shown*.

    The command *beside* it runs outside of the jail; two pipes lead to it, which
    `jailed.py` numbers.
    """
    request = {
        "shown": shown,
        "capabilities": sorted(capabilities),
        "beside": list(beside),
        "command": list(command),
    }
    return own_program(jailed, json.dumps(request))


def name_of(command: Sequence[str]) -> str:
    """Return what people call the program that *command* runs."""
    if jailed.__name__ in "".join(command[:-1]):
        return str(json.loads(command[-1])["command"][0])
    return command[0]
