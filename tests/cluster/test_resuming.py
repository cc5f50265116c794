"""Locks that went with a lease are taken again together; one taken harms no other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from plugin.ownership import resuming
from plugin.ownership.heads import Heads, Lock, VolumeState, put_head, put_lock
from plugin.ownership.resuming import TOGETHER_MAX, resume_all
from plugin.ownership.state import Head
from plugin.store.base import Put
from tests.support.ids import id_of
from tests.support.owners import Records

OWN, STRANGER = "own", "stranger"
NAMES = [id_of(f"v{number}") for number in range(TOGETHER_MAX)]


@pytest.fixture
def ownership(records: Records) -> Any:
    """Return the view of a node that owns volumes whose locks have gone."""
    lease = records.store.grant_lease(60)
    head = Head(epoch=3, owner=OWN, boot_id="boot", phase="owned", members=(OWN,))
    for name in NAMES:
        assert records.store.transact([], [put_head(name, head)]).succeeded

    def put(record: Any, epoch: int) -> Put:
        return put_lock(record.id, Lock(OWN, epoch), lease=lease)

    return SimpleNamespace(
        heads=records.heads, node_id=OWN, boot_id="boot", put_lock=put
    )


def volumes() -> list[Any]:
    return [(SimpleNamespace(id=each, name=each), 3) for each in NAMES]


def owners(records: Records) -> dict[str, str]:
    return {each: records.heads.read(each).locked_by for each in NAMES}


def revision(records: Records) -> int:
    return records.store.revision(deadline_s=10)


def test_as_many_as_etcd_takes_are_one_transaction(
    ownership: Any, records: Records
) -> None:
    before = revision(records)
    resume_all(ownership, volumes())
    assert owners(records) == dict.fromkeys(NAMES, OWN)
    # One for all of them; and etcd may have had to make a slot before.
    assert revision(records) - before <= 2


def test_one_that_is_taken_meanwhile_harms_no_other(
    ownership: Any, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is taken after it was read, and before the transaction."""
    stranger = records.store.grant_lease(60)

    def read(heads: Heads, volume_id: str) -> VolumeState:
        state = real(heads, volume_id)
        if volume_id == NAMES[7] and not state.locked_by:
            lock = put_lock(volume_id, Lock(STRANGER, 4), lease=stranger)
            head = Head(epoch=4, owner=STRANGER, phase="recovering")
            records.store.transact([], [put_head(volume_id, head), lock])
        return state

    real = Heads.read
    monkeypatch.setattr(Heads, "read", read)
    resume_all(ownership, volumes())
    assert owners(records) == {**dict.fromkeys(NAMES, OWN), NAMES[7]: STRANGER}


def test_the_bound_is_etcds() -> None:
    """A lock and a head are compared and written for each, and a slot besides."""
    assert 2 * resuming.TOGETHER_MAX + 1 <= 128
