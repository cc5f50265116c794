#!/usr/bin/python3 -I
"""
Runs the daemon and its CSI driver, as the managed plugin for Swarm's cluster volumes.

When one of them ends the other is ended, too: the engine then starts both again.
"""

import os
import signal
import subprocess
import sys
from typing import Final

# A call may run for 100 s and is let finish; the engine itself waits for 10 s only.
_END_S: Final = 110.0
_COMMAND: Final = "/usr/bin/remora"


def main() -> None:
    """Return when both have ended."""
    running = [subprocess.Popen([_COMMAND, name]) for name in ("serve", "csi")]
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _end(running))
    # What other children leave to process 1 is waited for, too.
    ended = 0
    while ended not in (each.pid for each in running):
        ended, _ = os.wait()
    _end(running)
    for each in running:
        if each.pid != ended:
            each.wait(_END_S)
    sys.exit(1)


def _end(running: list["subprocess.Popen[bytes]"]) -> None:
    # The driver first: its calls need the daemon.
    for each in reversed(running):
        try:
            os.kill(each.pid, signal.SIGTERM)
        except ProcessLookupError:
            continue


if __name__ == "__main__":
    main()
