"""
Where other nodes reach this one: the addresses that face them, following changes.

The kernel's routes say which of our addresses a packet to some host would come from.
Those addresses come first, then the other global ones. Addresses of bridges (docker0,
say) lead to this machine's own containers and count only if a route says otherwise;
loopback counts only if all addresses that we are told to reach are loopback, too.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import select
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from backends.errors import RemoraError
from backends.system.decoding import from_json
from backends.system.run import run

log = logging.getLogger(__name__)
# Others try them in order, so more would only make the search longer.
ADDRESSES_MAX: Final = 8
_TARGETS_MAX: Final = 32
# Source: rtnetlink(7): links, IPv4 and IPv6 addresses, and their routes.
_GROUPS: Final = 0x1 | 0x10 | 0x100 | 0x40 | 0x400
# The kernel's marks of addresses that cannot be used (yet), or will not stay.
_UNUSABLE: Final = ("tentative", "dadfailed", "temporary")
_IP_DEADLINE_S: Final = 5.0
# A thousand bytes for each of some ten thousand links, containers' among them.
_LINKS_SIZE_MAX: Final = 16 * 2**20
# It is never reached; the kernel only wants one.
_ANY_PORT: Final = 9
_MESSAGE_SIZE: Final = 65536
# So many messages are read before a look; what comes after them causes the next look.
_MESSAGES_MAX: Final = 1000
_LOOK_S: Final = 1.0
# Changes come in bursts; the kernel is asked once, after the burst.
_SETTLE_S: Final = 0.5
_STOP_WAIT_S: Final = 3.0


class Addresses:
    """
    Finds this node's addresses, given the URLs of etcd's members as *endpoints*.

    With *fixed*, an address from the configuration, nothing is looked for.
    """

    def __init__(self, endpoints: Sequence[str], *, fixed: str = "") -> None:
        self._hosts = [urlsplit(each).hostname or "" for each in endpoints]
        self._fixed = fixed

    def find(self, peers: Sequence[str] = ()) -> tuple[str, ...]:
        """
        Return the addresses, the best one first, at most `ADDRESSES_MAX`.

        Looking up the names of endpoints may take as long as the resolver waits.

        Raises:
            OSError: the kernel did not answer.

        """
        if self._fixed:
            return (self._fixed,)
        return own_addresses([*_resolved(self._hosts), *peers])


def own_addresses(targets: Sequence[str]) -> tuple[str, ...]:
    """
    Return our addresses that face *targets* (addresses), then the other global ones.

    Raises:
        OSError: the kernel did not answer.

    """
    targets = [each for each in targets if _is_address(each)][:_TARGETS_MAX]
    found = [address for each in targets for address in _facing(each)]
    found += _global()
    outside = [each for each in found if not ipaddress.ip_address(each).is_loopback]
    local = targets and all(ipaddress.ip_address(each).is_loopback for each in targets)
    # Loopback comes last: an etcd on this machine does not show where the others are.
    inside = [each for each in found if each not in outside] if local else []
    return tuple(dict.fromkeys(outside + inside))[:ADDRESSES_MAX]


class AddressWatcher:
    """Calls *changed* in a thread of its own after links or addresses changed."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._stopping = threading.Event()
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE
        )
        self._socket.setblocking(False)
        self._socket.bind((0, _GROUPS))
        self._thread = threading.Thread(target=self._run, name="addresses", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_WAIT_S)
        self._socket.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if not self._heard() or self._stopping.wait(_SETTLE_S):
                    continue
                self._empty()
                self._changed()
            except Exception:
                log.exception("a change of addresses was not followed")
                self._stopping.wait(_LOOK_S)

    def _heard(self) -> bool:
        """Return whether something changed; wait for it a little."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(_LOOK_S * 1000))

    def _empty(self) -> None:
        """Drop the messages so far: the look that follows sees what they tell of."""
        for _ in range(_MESSAGES_MAX):
            try:
                self._socket.recv(_MESSAGE_SIZE)
            except BlockingIOError:
                return
            except OSError as error:
                # The buffer overflowed; the look sees what the lost messages told of.
                if error.errno != errno.ENOBUFS:
                    raise


def _resolved(hosts: Sequence[str]) -> Iterator[str]:
    """Yield the addresses of *hosts*; those that have none now are left out."""
    for host in hosts:
        with suppress(OSError, UnicodeError):
            for *_, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM):
                yield str(address[0])


def _is_address(text: str) -> bool:
    """Return whether *text*, which another node may have written, is an address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _facing(target: str) -> list[str]:
    """Return the address that a packet to *target* would come from, if it can go."""
    # An address with a zone (fe80::1%eth0) is of this link only.
    address = target.partition("%")[0]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((address, _ANY_PORT))  # sends nothing
        source = str(probe.getsockname()[0])
        return [] if ipaddress.ip_address(source).is_link_local else [source]
    return []


def _global() -> list[str]:
    """Return the addresses that are valid everywhere, of links that are no bridges."""
    return [
        address["local"]
        for link in _links()
        if link.get("linkinfo", {}).get("info_kind") != "bridge"
        for address in link.get("addr_info", ())
        # ip(8) prints an empty object for each link or address that it leaves out.
        if address.get("family") in ("inet", "inet6")
        and not any(address.get(mark) for mark in _UNUSABLE)
    ]


def _links() -> list[dict[str, Any]]:
    """Return what ip(8) tells of links that are up, with their global addresses."""
    question = ("ip", "-json", "-details", "address", "show", "up", "scope", "global")
    try:
        told = run(question, deadline_s=_IP_DEADLINE_S, output_size_max=_LINKS_SIZE_MAX)
        return from_json(told.output or "[]", list[dict[str, Any]])
    except (RemoraError, msgspec.DecodeError) as error:
        raise OSError(f"cannot read the addresses: {error}") from error
