"""The cables between machines: a bridge on the first, a port of it for each other."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.support.host import Host

BRIDGE: Final = "bridge"
PREFIX: Final = 24
DEADLINE_S: Final = 10.0


class Network:
    """The machines' network; *hub* has the bridge, and *address* on it."""

    def __init__(self, hub: Host, address: str) -> None:
        self._hub = hub
        self._ip("link", "add", BRIDGE, "type", "bridge")
        self._ip("address", "add", f"{address}/{PREFIX}", "dev", BRIDGE)
        self._ip("link", "set", BRIDGE, "up")

    def plug(self, host: Host, address: str) -> None:
        """Give *host* a cable, named after it, and *address* on its end."""
        port = f"to-{host.name}"
        # Entered from here: the hub's own processes know none of another machine.
        subprocess.run(
            [
                *("nsenter", f"--net=/proc/{self._hub.pid}/ns/net", "--"),
                *("ip", "link", "add", port, "type", "veth"),
                *("peer", "name", "eth0", "netns", str(host.pid)),
            ],
            check=True,
            timeout=DEADLINE_S,
        )
        self._ip("link", "set", port, "master", BRIDGE, "up")
        host.run(["ip", "address", "add", f"{address}/{PREFIX}", "dev", "eth0"])
        host.run(["ip", "link", "set", "eth0", "up"])

    def cut(self, host: Host) -> None:
        """Pull the machine's cable out."""
        self._ip("link", "set", f"to-{host.name}", "down")

    def mend(self, host: Host) -> None:
        self._ip("link", "set", f"to-{host.name}", "up")

    def _ip(self, *arguments: str) -> None:
        self._hub.run(["ip", *arguments])
