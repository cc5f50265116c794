"""
Whether this node's own store still counts, or its volumes are in a cluster's.

A join writes this into node.db before it moves the first record, and again when it is
done. From then on the records of store.db are out of date: a daemon that used them
would show volumes that another node has removed, or owns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from backends.registry import has_catalogue_on_storage
from plugin.config import Config
from plugin.errors import StoreError
from plugin.membership.lease import Facts
from plugin.model import VolumeRecord
from plugin.store.sqlite import SqliteStore
from plugin.store.values import value_of

_FACT: Final = "joined_cluster"
VOLUMES: Final = "volumes/"
_NAMED_MAX: Final = 5


@dataclass(frozen=True, slots=True)
class Joined:
    """Into which cluster this node's volumes went, and whether all of them did."""

    cluster: str
    finished: bool


def joined(facts: Facts) -> Joined | None:
    """Return what is noted, None if this node's own store counts."""
    state, _, cluster = (facts.fact(_FACT) or "").partition(" ")
    return Joined(cluster, finished=state == "joined") if state else None


def note_joined(facts: Facts, cluster: str, *, finished: bool) -> None:
    """Note that the volumes go into *cluster*."""
    facts.set_fact(_FACT, f"{'joined' if finished else 'joining'} {cluster}")


def note_left(facts: Facts) -> None:
    """Note that this node's own store counts again."""
    facts.forget(_FACT)


def refuse_joined(node: Facts, config: Config) -> None:
    """
    Raise `StoreError` if the daemon would start with the wrong records.

    They are wrong in three cases: a join was not finished; the node is alone after a
    join; it is in a cluster, but has volumes of its own that never joined it.
    """
    found = joined(node)
    if found is not None and not found.finished:
        raise StoreError(
            f"a join of this node to cluster {found.cluster} was not finished",
            hint="repeat it: remora cluster join",
        )
    if not config.cluster.etcd:
        if found is not None:
            raise StoreError(
                f"this node's volumes are in cluster {found.cluster}, and [cluster] "
                "names no etcd",
                hint="repeat: remora cluster join --etcd URL; or, to leave the "
                "cluster, see docs/guides/cluster-records.md",
            )
    elif found is None and (names := _own_volumes(config)):
        more = f" and {len(names) - _NAMED_MAX} more" if names[_NAMED_MAX:] else ""
        raise StoreError(
            "this node has volumes that are not in the cluster: "
            f"{', '.join(names[:_NAMED_MAX])}{more}",
            hint="take them there: remora cluster join",
        )


def _own_volumes(config: Config) -> list[str]:
    """Return the names of volumes of which only this node's own store knows."""
    path = config.state_dir / "store.db"
    if not path.exists():
        return []
    store = SqliteStore(path)
    try:
        records, _ = store.prefix(VOLUMES)
    finally:
        store.close()
    volumes = [value_of(each, VolumeRecord) for each in records]
    return [each.name for each in volumes if not has_catalogue_on_storage(each.backend)]
