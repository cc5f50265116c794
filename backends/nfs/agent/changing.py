"""
One node at a time removes a volume or swaps its bytes: `.dvol/changing/<id>`.

The marker alone cannot say so: a node that reads it, and writes it milliseconds later,
would write over that of a new volume which has taken the name meanwhile. This file is
named after the volume's id, which is never used again.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from backends.nfs.agent.catalogue import Catalogue, Refused
from backends.nfs.agent.schema import Json

# Longer than the longest call to an agent; what is older was cut short.
CHANGE_FRESH_S = 60
_TRIES = 3


@contextmanager
def changing(catalogue: Catalogue, volume_id: str) -> Iterator[None]:
    """
    Be the one node that changes the volume.

    A file that this node itself has left, or that is too old, is of a change that was
    cut short by a crash. It is taken over: the marker says what is left to be done.

    Raises:
        Refused: CHANGING, another node is at it.

    """
    _claim(catalogue, volume_id)
    try:
        yield
    finally:
        catalogue.unlink("changing", volume_id)


def _claim(catalogue: Catalogue, volume_id: str) -> None:
    content: Json = {"node": catalogue.node, "token": uuid.uuid4().hex}
    for _ in range(_TRIES):
        if catalogue.link_new(content, "changing", volume_id):
            return
        holder = catalogue.read("changing", volume_id)
        if holder is None:
            continue
        if holder["node"] == catalogue.node:
            return
        if catalogue.age_s("changing", volume_id) < CHANGE_FRESH_S:
            raise Refused("CHANGING", f"it is being changed on {holder['node']}")
        catalogue.unlink_if(holder, "changing", volume_id)
    raise Refused("CHANGING", "other nodes are changing it")
