"""What goes over the line between the nodes: TCP of some ports."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from typing import Final

_DEADLINE_S: Final = 30.0
_COUNTED: Final = re.compile(r"^\[\d+:(\d+)\] -A INPUT .*--[sd]port", re.MULTILINE)


class Line:
    """
    The loopback of this process's own network, with a counter for *ports*.

    Counted are whole packets in both directions: bytes of files, requests, encryption.
    """

    def __init__(self, ports: Sequence[int]) -> None:
        _run("ip", "link", "set", "lo", "up")
        for port in ports:
            for side in ("--sport", "--dport"):
                _run("iptables", "-A", "INPUT", "-p", "tcp", side, str(port))

    def carried_bytes(self) -> int:
        """Return what was carried so far."""
        return sum(map(int, _COUNTED.findall(_run("iptables-save", "-c"))))


def _run(*command: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_DEADLINE_S, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout
