"""
Becomes another program in a jail; see `jail.py`.

It takes one JSON argument: the directories `shown`, the `capabilities` that are kept,
and the `command`. Its own caller is `run.in_jail`.
"""

import json
import os
import sys

from backends.system import jail

_EXIT_UNAVAILABLE = 126


def main() -> None:
    """Enter the jail of the first argument, and become its program."""
    request = json.loads(sys.argv[1])
    command = request["command"]
    try:
        shown = [jail.Shown(*each) for each in request["shown"]]
        jail.enter(
            *shown,
            capabilities=request["capabilities"],
            programs=True,
            account=request["account"],
        )
        os.execvpe(command[0], command, os.environ)
    except OSError as error:
        name = f" ({error.filename})" if error.filename else ""
        sys.stderr.write(f"{error.strerror}{name}\n")
        sys.exit(_EXIT_UNAVAILABLE)
