"""
What `remora-receive` becomes for a control session: a copier between node and daemon.

One runs for each other node, as long as both daemons do. So it has no more in memory
than it needs, which is half of what the program has that lets the node in.
"""

import os
import select
import sys

_CHUNK = 65536


def main() -> None:
    """Copy our input to the socket of argument 1, and back, until one of both ends."""
    daemon = int(sys.argv[1])
    targets = {0: daemon, daemon: 1}
    poll = select.poll()
    for each in targets:
        poll.register(each, select.POLLIN)
    try:
        while True:
            for source, _ in poll.poll():
                chunk = os.read(source, _CHUNK)
                if not chunk:
                    return
                while chunk:
                    chunk = chunk[os.write(targets[source], chunk) :]
    except (BrokenPipeError, ConnectionResetError):
        return
