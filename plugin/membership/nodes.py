"""
What a cluster knows of its nodes, and what forbids a node to be one of them.

    nodes/<node id>      NodeRecord: who it is, where it is reached, what it offers
    node_names/<name>    the node id: a name belongs to one node
    alive/<node id>      AliveRecord, on the node's lease: gone when the node is
    former_nodes/<id>    the name of a node that was removed, for people

A record may have fields of a newer version; they are ignored. The reasons for all of
this: docs/adr/0014-membership.md.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal

import msgspec

from backends.base import LineText, WholeNumber
from backends.errors import one_line
from backends.options import NODE_NAME
from plugin.errors import ConfigError, NodeConflictError
from plugin.model import NODE_ID, NodeId
from plugin.store.base import Record, Store

NODES: Final = "nodes/"
NAMES: Final = "node_names/"
ALIVE: Final = "alive/"
FORMER_NODES: Final = "former_nodes/"
# A clock that is further off is warned about: the times in the nodes' records and logs
# no longer fit together. Nothing that decides anything reads a wall clock.
CLOCK_OFFSET_MAX_S: Final = 5.0
# The version of the records and of what peers say to each other, and the oldest one
# that this daemon can work with.
PROTOCOL: Final = 1
PROTOCOL_OLDEST: Final = 1
_NAME_LENGTH_MAX: Final = 63

State = Literal["ready", "drained", "down"]


class NodeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A node as the store keeps it; ``addresses`` begin with the best one."""

    KEY: ClassVar[re.Pattern[str]] = re.compile(rf"{NODES}(?P<id>{NODE_ID})")

    id: NodeId
    name: Annotated[str, msgspec.Meta(pattern=rf"\A{NODE_NAME.pattern}\Z")]
    # What goes into files of ssh's has to have more than a form: see `peers/peer.py`.
    addresses: Annotated[tuple[LineText, ...], msgspec.Meta(max_length=16)] = ()
    peer_port: WholeNumber
    version: LineText
    protocol: WholeNumber
    protocol_oldest: WholeNumber
    machine_id: LineText
    boot_id: LineText
    host_key: LineText
    public_key: LineText
    pool_total_bytes: WholeNumber = 0
    pool_available_bytes: WholeNumber = 0
    drained: bool = False
    joined_at: LineText


class AliveRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A running daemon; ``session`` is another one after each start."""

    KEY: ClassVar[re.Pattern[str]] = re.compile(rf"{ALIVE}{NODE_ID}")

    boot_id: LineText
    started_at: LineText
    session: LineText


@dataclass(frozen=True, slots=True)
class Identity:
    """What a daemon says of itself; the keys are public ones, as ssh writes them."""

    id: str
    name: str
    peer_port: int
    host_key: str
    public_key: str
    machine_id: str
    boot_id: str
    session: str


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node's record, and whether its daemon lives; the offset is None if unknown."""

    record: NodeRecord
    alive: bool
    clock_offset_s: float | None = None

    @property
    def state(self) -> State:
        """Return the state as people are shown it."""
        if not self.alive:
            return "down"
        return "drained" if self.record.drained else "ready"

    def clock_warning(self) -> str:
        """Return a line for people if the node's clock is far off, else ""."""
        offset_s = self.clock_offset_s or 0.0
        if abs(offset_s) <= CLOCK_OFFSET_MAX_S:
            return ""
        way = "ahead of" if offset_s > 0 else "behind"
        return (
            f"the clock of node '{self.record.name}' is {abs(offset_s):.0f} s {way} "
            "this node's"
        )


def own_name(configured: str) -> str:
    """
    Return the name of this node: *configured*, or the machine's.

    Raises:
        ConfigError: the machine's name is no node's name.

    """
    name = configured or os.uname().nodename[:_NAME_LENGTH_MAX]
    if NODE_NAME.fullmatch(name):
        return name
    raise ConfigError(
        [f"the machine's name '{name}' is not a node's name; set node_name"],
        source="[cluster]",
    )


def machine_id() -> str:
    """
    Return the id that tells this machine from others, "" where it has none.

    The managed plugin has a root of its own, and process 1 has the machine's.
    Source: machine-id(5).
    """
    for root in ("/", "/proc/1/root"):
        with suppress(OSError, UnicodeDecodeError):
            return Path(root, "etc/machine-id").read_text("ascii").strip()
    return ""


def node_ids(store: Store) -> list[str]:
    """Return the ids of all nodes, also of those whose records cannot be read."""
    ids = (each.key.removeprefix(NODES) for each in store.prefix(NODES)[0])
    return [each for each in ids if re.fullmatch(NODE_ID, each)]


def owner_of(stored: Record | None) -> str:
    """Return the plain text of a record, such as the id of a name; "" if none is."""
    return one_line(stored.value.decode(errors="replace")) if stored else ""


def refuse_name(own: Identity, owner: str, owners_record: NodeRecord | None) -> None:
    """Raise `NodeConflictError` if our name belongs to *owner*, another node."""
    if owner in ("", own.id):
        return
    raise NodeConflictError(
        f"the node name '{own.name}' belongs to node {owner}{_at(owners_record)}",
        hint="set node_name in [cluster] to another one; or, if that node is gone for "
        f"good: remora node rm {own.name}",
    )


def refuse_clone(own: Identity, record: NodeRecord | None) -> None:
    """Raise `NodeConflictError` if *record*, whose node lives, is another machine's."""
    if record is None or record.machine_id == own.machine_id:
        return
    raise clone_error(own, record)


def clone_error(own: Identity, record: NodeRecord | None) -> NodeConflictError:
    """Return the error for two machines with one node id."""
    return NodeConflictError(
        f"node {own.id} is running on another machine{_at(record)}",
        hint="if this disk is a copy of that machine's, stop remora here and call: "
        "remora node new-identity",
    )


def refuse_protocol(others: Sequence[NodeView]) -> None:
    """Raise `NodeConflictError` if a live node and we understand no common version."""
    for each in others:
        record = each.record
        if each.alive and not (
            record.protocol >= PROTOCOL_OLDEST and record.protocol_oldest <= PROTOCOL
        ):
            raise NodeConflictError(
                f"node '{record.name}' runs Remora {record.version}, which speaks "
                f"protocol {record.protocol_oldest} to {record.protocol}; this one "
                f"speaks {PROTOCOL_OLDEST} to {PROTOCOL}",
                hint="update the older of the two first",
            )


def _at(record: NodeRecord | None) -> str:
    if record is None:
        return ""
    at = f" at {record.addresses[0]}" if record.addresses else ""
    return f" ('{record.name}'{at})"
