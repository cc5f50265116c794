"""What the nodes of a cluster keep of a volume, and when two copies are alike."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from tests.protocol.node import wait_until
from tests.support.journal_trees import shape
from tests.support.owners import WAIT_S, Owner, Records


def live(owner: Owner, volume_id: str) -> Path:
    """Return the directory that containers see on the node, or would see."""
    return owner.copy(volume_id) / "live"


def wait_same(first: Owner, second: Owner, volume_id: str) -> None:
    """
    Return when both copies are alike in everything.

    While the volume is mounted anywhere, a member may be applying a commit, even an
    empty one: a comparison that does not wait then finds a half-applied tree.
    """

    def same() -> bool:
        there = live(second, volume_id)
        with suppress(AssertionError, FileNotFoundError):
            return there.is_dir() and shape(there) == shape(live(first, volume_id))
        return False

    wait_until(same, f"{second.name} has what {first.name} has", timeout_s=WAIT_S)


def wait_held(records: Records, volume_id: str, *owners: Owner) -> None:
    """Return when the store says that exactly *owners* have the newest commit."""
    wanted = {each.id for each in owners}
    wait_until(
        lambda: set(records.head(volume_id).holders) == wanted,
        f"held by {[each.name for each in owners]}",
        timeout_s=WAIT_S,
    )
