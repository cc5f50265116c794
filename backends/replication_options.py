"""
The options of replication: how they are spelled, what holds without them, their values.

Records keep them as text. A backend parses them with `PARSERS` and fills in `DEFAULTS`;
whoever acts on them reads them with `ReplicationOptions.of`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, cast

from backends import options as parse
from backends.errors import InvalidRequestError

Consistency = Literal["auto", "pause", "fuzzy"]
REPLICAS_MAX: Final = 16
# Of more names in one volume nobody would be sent a commit: to look for what has
# changed takes memory and time with each.
MAX_NAMES: Final = 5_000_000
PARSERS: Final[Mapping[str, parse.Parser]] = {
    "replicas": parse.whole_number(1, REPLICAS_MAX),
    "members": parse.node_names,
    "interval": parse.duration,
    "min_acks": parse.whole_number(0, REPLICAS_MAX - 1),
    "failover": parse.one_of("accept_loss", "refuse"),
    "fence": parse.one_of("freeze", "kill", "none"),
    "max_names": parse.whole_number(1, 999_999_999),
    "consistency": parse.one_of("auto", "pause", "fuzzy"),
    "group": parse.group_name,
}
DEFAULTS: Final = {
    "failover": "accept_loss",
    "fence": "freeze",
    "interval": "10s",
    "min_acks": "0",
}
# A record does not keep these: a node that is alone has no other copies.
_IN_A_CLUSTER: Final = {
    "replicas": "2",
    "members": "",
    "max_names": str(MAX_NAMES),
    "consistency": "auto",
    "group": "",
}
# Instead of a value that cannot be read: what keeps most copies, and gives up none.
_IF_UNREADABLE: Final = {
    "replicas": str(REPLICAS_MAX),
    "members": "",
    "interval": DEFAULTS["interval"],
    "min_acks": str(REPLICAS_MAX - 1),
    "failover": "refuse",
    "fence": DEFAULTS["fence"],
    "max_names": str(MAX_NAMES),
    "consistency": "auto",
    "group": "",
}


@dataclass(frozen=True, slots=True)
class ReplicationOptions:
    """
    How a volume is replicated.

    ``members`` are the names of the nodes that keep its copies; if there are none,
    ``replicas`` is how many do. A commit counts once ``min_acks`` other nodes have it.
    ``accept_loss``: go on with an older commit if no node with the newest can be asked.
    ``fence``: what is done with writers on a node that has lost the volume. Of a volume
    with more than ``max_names`` no commit is made. ``consistency``: whether containers
    are paused for commits of one moment; "auto" where that is short. All volumes of a
    ``group`` that a node has mounted are committed at one moment; "" is none.
    """

    replicas: int
    members: frozenset[str]
    interval_s: float
    min_acks: int
    accept_loss: bool
    fence: Literal["freeze", "kill", "none"]
    max_names: int = MAX_NAMES
    consistency: Consistency = "auto"
    group: str = ""

    @classmethod
    def of(cls, options: Mapping[str, str]) -> ReplicationOptions:
        """
        Return what the *options* of a record say; pure.

        A value that cannot be read counts as the one that loses least: a damaged record
        must not keep its volume from being fenced, nor others from being looked at.
        """
        said = {**_IN_A_CLUSTER, **DEFAULTS}
        for key, parser in PARSERS.items():
            if key in options:
                try:
                    said[key] = parser(options[key])
                except ValueError:
                    said[key] = _IF_UNREADABLE[key]
        return cls(
            replicas=int(said["replicas"]),
            members=frozenset(filter(None, said["members"].split(","))),
            interval_s=parse.seconds(said["interval"]),
            min_acks=int(said["min_acks"]),
            accept_loss=said["failover"] == "accept_loss",
            fence=cast('Literal["freeze", "kill", "none"]', said["fence"]),
            max_names=int(said["max_names"]),
            consistency=cast("Consistency", said["consistency"]),
            group=said["group"],
        )

    def require_possible(self) -> None:
        """Raise InvalidRequestError if they contradict each other."""
        if self.group and self.consistency == "fuzzy":
            raise InvalidRequestError(
                "volumes of a group are committed at one moment, for which containers "
                "are paused: option 'group' does not go with consistency=fuzzy",
                hint="leave one of them out",
            )

    @property
    def copies(self) -> int:
        """How many nodes keep a copy."""
        return len(self.members) or self.replicas
