"""What the built-in driver mounts is mounted here: the table of spellings, measured."""

from __future__ import annotations

import pytest

from tests.lab.lab import Lab
from tests.lab.nfs import NfsServer
from tests.lab.nfs_spellings import both_try
from tests.support.spellings import spellings


@pytest.mark.long
def test_the_table_says_what_the_built_in_driver_does_and_what_we_do(
    shared_lab: Lab, nfs_server: NfsServer
) -> None:
    rows = spellings()
    tried = [each.options(nfs_server.ipv4) for each in rows]
    for row, (local, ours) in zip(
        rows, both_try(shared_lab["alpha"], tried), strict=True
    ):
        assert (local or "mounts", not ours) == (row.local, row.is_mounted), (row, ours)
