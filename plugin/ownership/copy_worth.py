"""What a copy has of what is committed: rules like those of `rules.py`."""

from __future__ import annotations

from typing import Final

import msgspec

from plugin.ownership.state import (
    EMPTY,
    CopyState,
    Epoch,
    Head,
    Lineage,
    RefusedError,
    Tomb,
)

_NO_EPOCHS: Final = Lineage({})


def gone_back(copy: CopyState, head: Head, lineage: Lineage = _NO_EPOCHS) -> bool:
    """
    Return whether a live copy is an older one than it was: its disk has gone back.

    The number of a commit is written down before anybody sees it. So of the copy's
    epoch none is known that is not below its next one.
    """
    known = [head.committed]
    for each in lineage.epochs.values():
        known += [each.base, each.lost or EMPTY]
    made = [each.seq for each in known if each.epoch == copy.live_epoch]
    return copy.live_epoch > 0 and max(made, default=0) >= copy.next_seq


def stands(head: Head, copy: CopyState | None) -> bool:
    """Return whether *copy* has what is committed."""
    if copy is None:
        return False
    owns = copy.live_epoch == head.epoch > 0 and not gone_back(copy, head)
    return owns or copy.commit >= head.committed


def strike(head: Head, *, node: str, copy: CopyState | None) -> Head:
    """
    Return the head after *node* has found that its *copy* is not what it is held to be.

    Raises:
        RefusedError: last-copy: of no other node is it known that it has the commit,
            and without any the commit would count as given up.

    """
    others = tuple(each for each in head.holders if each != node)
    if node not in head.holders or stands(head, copy):
        return head
    if not others:
        raise RefusedError("last-copy", node=node, commit=head.committed)
    return msgspec.structs.replace(head, holders=others)


def known_again(head: Head, copy: CopyState, *, node: str) -> Head:
    """Return the head of a volume of which *node* alone has a copy, from that copy."""
    return msgspec.structs.replace(
        head,
        epoch=max(head.epoch, copy.promised, copy.newest_epoch),
        owner=node,
        phase="idle",
        committed=copy.commit,
        quality="",
        holders=(node,),
        members=(node,),
        released_at="",
    )


def superseded(copy: CopyState, head: Head, lineage: Lineage) -> bool:
    """Return whether the members hold all that is in *copy*, which is no member's."""
    if copy.newest_epoch > lineage.newest(head.epoch):
        return False
    return copy.commit <= head.committed and not diverged(copy, head, lineage)


def diverged(copy: CopyState, head: Head, lineage: Lineage) -> bool:
    """
    Return whether *copy*, no member's, has bytes that no owner has gone on from.

    Of one that older records do not know nobody can tell.
    """
    if copy.newest_epoch > lineage.newest(head.epoch):
        return False
    grown = lineage.contains(copy.commit, at=head.epoch)
    return copy.live_epoch > 0 or not (grown or copy.commit == EMPTY)


def is_unknown(copy: CopyState, tomb: Tomb) -> bool:
    """Return whether *copy* has bytes of which who removed the volume did not know."""
    if copy.live_epoch or tomb.committed is None:
        return copy.live_epoch > 0
    head = Head(epoch=tomb.committed.epoch, committed=tomb.committed)
    lineage = Lineage({number: Epoch(base, "") for number, base in tomb.bases})
    return not superseded(copy, head, lineage)
