"""What the built-in driver mounts is mounted here: the table of spellings, measured."""

from __future__ import annotations

import pytest

from tests.lab.lab import Lab
from tests.lab.nfs import NfsServer
from tests.lab.nfs_spellings import MOUNTED, both_try
from tests.support.spellings import spellings

# No volume has devices, nor set-id programs unless asked for; mount.nfs finds out where
# mountd is; and these mean nothing to NFS.
NOT_COMPARED = ("nodev", "nosuid", "mount", "clientaddr=", "lazytime", "mand")


@pytest.mark.long
def test_the_table_says_what_the_built_in_driver_does_and_what_we_do(
    shared_lab: Lab, nfs_server: NfsServer
) -> None:
    rows = spellings()
    tried = [each.options(nfs_server.ipv4) for each in rows]
    for row, (local, ours) in zip(
        rows, both_try(shared_lab["alpha"], tried), strict=True
    ):
        theirs, here = (effective(each) for each in (local, ours))
        told = "mounts" if theirs else local
        assert (told, bool(here)) == (row.local, row.is_mounted), (row, ours)
        if theirs and here and version(theirs) == version(here):
            assert here == theirs, row


def effective(told: str) -> set[str]:
    """Return the options of a mount but for what differs by design; none if failed."""
    first, *found = told.split(",")
    if first != MOUNTED:
        return set()
    kept = {each for each in found if not each.startswith(NOT_COMPARED)}
    return {MOUNTED, *kept}


def version(options: set[str]) -> set[str]:
    return {each for each in options if each.startswith("vers=")}
