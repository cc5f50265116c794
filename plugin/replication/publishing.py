"""Letting the store, and people, know which commit is kept, and by whom."""

from __future__ import annotations

import logging
from collections.abc import Collection

from plugin.errors import ChangedError
from plugin.logs import fields
from plugin.model import VolumeRecord
from plugin.ownership import rules
from plugin.ownership.state import Commit, Quality, RefusedError
from plugin.ownership.view import OwnershipView
from plugin.replication.report import Report
from plugin.store.contention import attempted

log = logging.getLogger(__name__)


def publish(
    ownership: OwnershipView,
    record: VolumeRecord,
    epoch: int,
    commit: Commit,
    holders: Collection[str],
    *,
    quality: Quality,
    moment: str = "",
) -> None:
    """
    Let the store know that *holders*, and this node, the owner, have *commit*.

    Raises:
        StoreError: the cluster did not answer, or others change the head all the time.

    """
    everybody = tuple(sorted({*holders, ownership.node_id}))

    def change() -> None:
        state = ownership.heads.read(record.id)
        if state.head is None:
            return
        try:
            published = rules.publish(
                state.head,
                node=ownership.node_id,
                epoch=epoch,
                commit=commit,
                holders=everybody,
                quality=quality,
                moment=moment,
            )
        except RefusedError:
            return
        if published == state.head:
            return
        if ownership.heads.change(state, published) is None:
            raise ChangedError("the volume's head has changed meanwhile")

    attempted(change)


def tell(
    ownership: OwnershipView, record: VolumeRecord, report: Report, took_s: float
) -> None:
    """Log that a commit was sent, and note it among the volume's events."""
    commit, duration_ms = str(report.commit), round(1000 * took_s, 1)
    moment = report.moment
    log.info(
        "synced",
        extra=fields(
            volume=record.name,
            commit=commit,
            copies=len(report.holders),
            bytes=report.size_bytes,
            duration_ms=duration_ms,
        ),
    )
    ownership.events.add(
        record,
        "committed",
        commit=commit,
        size_bytes=report.size_bytes,
        duration_ms=duration_ms,
        moment=moment,
        holders=",".join(sorted({*report.holders, ownership.node_id})),
    )
