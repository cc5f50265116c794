"""A change in a large file costs what has changed, wherever the file is next."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tests.support.copies import live, wait_held, wait_same
from tests.support.owners import Owner, Records

NAME = "data"
SIZE = 24 * 2**20


def write_at(path: Path, offset: int) -> None:
    """Write 16 KiB, and see to it that no look believes the file unchanged."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(os.urandom(16 * 1024))


def test_a_database_is_led_on_and_back_again(
    make_owner: Callable[..., Owner], records: Records
) -> None:
    alpha, beta = make_owner("alpha"), make_owner("beta")
    volume_id = alpha.create(NAME, interval="1s")
    beta.wait_known(NAME)
    alpha.mount_at_last(NAME)
    database = live(alpha, volume_id) / "database"
    database.write_bytes(os.urandom(SIZE))
    wait_same(alpha, beta, volume_id)
    # From the first commit on that led somebody on, ranges are known.
    write_at(database, 0)
    wait_same(alpha, beta, volume_id)
    for turn, (owner, other) in enumerate([(alpha, beta), (beta, alpha)]):
        before = owner.sent_bytes()
        for number in range(1, 4):
            write_at(live(owner, volume_id) / "database", number * 3 * 2**20)
            wait_same(owner, other, volume_id)
        # The new owner of a copy that is nowhere indexed sends the file once, as rsync
        # does: no more than what differs goes over the line.
        assert owner.sent_bytes() - before < SIZE / 20
        owner.unmount(NAME)
        wait_held(records, volume_id, alpha, beta)
        if not turn:
            other.mount_at_last(NAME)
