"""
Becomes another program in a jail; see `jail.py`.

It takes one JSON argument: what is `shown`, the `capabilities` that are kept, the
`command`, and one that runs `beside` the jail, if any. `programs.in_jail` makes it.
"""

import json
import os
import sys

from backends.system import jail

# The ends, in the jail, of the pipes from and to what runs beside it.
FROM_BESIDE, TO_BESIDE = 8, 9
# No jail could be made, or it has no such program.
EXIT_UNAVAILABLE = 126


def main() -> None:
    """Enter the jail of the first argument, and become its program."""
    request = json.loads(sys.argv[1])
    command = request["command"]
    try:
        if request.get("beside"):
            _start_beside(request["beside"])
        shown = [jail.Shown(*each) for each in request["shown"]]
        jail.enter(
            *shown,
            capabilities=request["capabilities"],
            programs=True,
        )
        os.execvpe(command[0], command, os.environ)
    except OSError as error:
        name = f" ({error.filename})" if error.filename else ""
        sys.stderr.write(f"{error.strerror}{name}\n")
        sys.exit(EXIT_UNAVAILABLE)


def _start_beside(command: list[str]) -> None:
    """Start *command*, which ends when nobody in the jail holds its input any more."""
    its_input, ours_to = os.pipe()
    ours_from, its_output = os.pipe()
    os.posix_spawnp(
        command[0],
        command,
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, its_input, 0),
            (os.POSIX_SPAWN_DUP2, its_output, 1),
        ],
    )
    os.dup2(ours_from, FROM_BESIDE)
    os.dup2(ours_to, TO_BESIDE)
    for each in (its_input, its_output, ours_from, ours_to):
        os.close(each)
