"""
The rules by which nodes own volumes and copies follow them: pure, without I/O.

A volume has one *head* in the store, and a *copy state* on each node that has a copy.
Each function here takes what is written there and returns what is to be written next,
or refuses. The other modules of this room call them between a read and a
compare-and-set; `tests/model` calls them in every order that it can find. So the rules
that are checked are those that run.

- An *epoch*, the fencing token, is raised each time a node becomes owner.
- A *commit* (epoch, seq) names one state of the bytes. Within an epoch a later commit
  holds all of an earlier one.
- An epoch begins with a *base*, the commit that its owner took over. The bases make
  the *lineage*: whatever does not lie on it has diverged, and is set apart, never
  overwritten.
- A copy that has *promised* an epoch takes nothing from an earlier owner.
- Containers may have written to a *live* copy since its last commit. It is *sealed*,
  made a commit, before anything else happens to it.

Source: docs/adr/0015-ownership.md.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from msgspec.structs import replace

from plugin.ownership.state import (
    EMPTY,
    TIME_UNKNOWN,
    Choice,
    Commit,
    CopyState,
    Head,
    Kept,
    Lineage,
    Quality,
    RefusedError,
)

# The head


def acquire(
    head: Head, *, locked_by: str, node: str, boot_id: str, promised: int = 0
) -> Head:
    """
    Return the head with *node* recovering the next epoch.

    *locked_by* is the node with the lock, or ""; its own lock does not hinder *node*.
    Its copy may have *promised* a later epoch than older records know: that number is
    not given again.
    It becomes a member in `begin` only: until then, its copy may be an old one. If it
    gives up, the volume is as released as it was.

    Raises:
        RefusedError: locked, removing.

    """
    if locked_by and locked_by != node:
        raise RefusedError("locked", node=locked_by)
    if head.phase == "removing":
        raise RefusedError("removing")
    if head.released and not head.released_at:
        head = replace(head, released_at=TIME_UNKNOWN)
    epoch = max(head.epoch, promised) + 1
    return replace(head, epoch=epoch, owner=node, boot_id=boot_id, phase="recovering")


def choose(
    head: Head, lineage: Lineage, votes: Mapping[str, Commit], *, accept_loss: bool
) -> Choice:
    """
    Return the best of *votes*: commits, by node, of copies that promised this epoch.

    A volume that may have been written to never begins empty, whatever is accepted:
    each former owner must vote that its copy is empty, and no copy may have bytes.
    The vote of a new owner that is no member counts only if it is not older than what
    is committed: its copy may be left from a time when it was a member.

    Raises:
        RefusedError: stale-epoch, no-copy, would-begin-empty, newer-elsewhere.

    """
    for node, commit in votes.items():
        lineage.require_known(commit.epoch, at=head.epoch - 1, node=node)
    offered = {
        node: commit
        for node, commit in votes.items()
        if lineage.contains(commit, at=head.epoch - 1)
        and (node in head.members or commit == EMPTY or commit >= head.committed)
    }
    if not offered:
        raise RefusedError("no-copy", commit=head.committed)
    base = max(offered.values())
    silent = sorted({*lineage.owners(), *head.holders} - {*votes})
    written = [*silent, *sorted(node for node in votes if votes[node] != EMPTY)]
    if base == EMPTY and (written or head.committed != EMPTY):
        node = next(iter(written), "")
        raise RefusedError("would-begin-empty", node=node, commit=head.committed)
    lost = head.committed if base < head.committed else None
    if lost is not None and not accept_loss:
        node = min({*head.holders} - {*votes}, default="")
        raise RefusedError("newer-elsewhere", node=node, commit=head.committed)
    holders = tuple(sorted(node for node in offered if offered[node] == base))
    return Choice(base, holders, lost)


def begin(head: Head, choice: Choice) -> Head:
    """Return the head as its recovering owner begins the epoch with *choice*."""
    owner = () if head.owner in head.members else (head.owner,)
    return replace(
        head,
        phase="owned",
        committed=choice.base,
        quality=head.quality if choice.base == head.committed else "",
        moment=head.moment if choice.base == head.committed else "",
        holders=choice.holders,
        members=(*head.members, *owner),
        released_at="",
    )


def resume(head: Head, *, locked_by: str, node: str, boot_id: str, epoch: int) -> Head:
    """
    Return the head under which *node* may hold *epoch* again after it lost its lock.

    Only within one boot: whatever wrote before a reboot is gone.

    Raises:
        RefusedError: not-owner: somebody has come in between.

    """
    if (
        head.epoch != epoch
        or head.owner != node
        or head.boot_id != boot_id
        or head.phase != "owned"
        or locked_by not in ("", node)
    ):
        raise RefusedError("not-owner", node=head.owner, epoch=head.epoch)
    return head


def publish(
    head: Head,
    *,
    node: str,
    epoch: int,
    commit: Commit,
    holders: tuple[str, ...],
    quality: Quality = "fuzzy",
    moment: str = "",
) -> Head:
    """Return the head after *holders* have *commit* of this epoch; else not-owner."""
    if head.epoch != epoch or head.owner != node or head.phase != "owned":
        raise RefusedError("not-owner", node=head.owner, epoch=head.epoch)
    if commit < head.committed:
        return head
    if commit == head.committed:  # members may come to it in several rounds
        quality, holders = head.quality, tuple(sorted({*head.holders, *holders}))
        moment = max(moment, head.moment)  # nothing has changed since an earlier one
    told = replace(head, committed=commit, quality=quality, moment=moment)
    return replace(told, holders=_members(head, holders))


def spread(head: Head, *, node: str, commit: Commit, holders: tuple[str, ...]) -> Head:
    """
    Return the head after *holders* also have *commit*, the last owner's last one.

    *node* has sent it: the last owner or, if that one is gone, another holder.

    Raises:
        RefusedError: not-owner: it is not released, or the head names another commit.

    """
    if not (head.released and node in head.holders) or head.committed != commit:
        raise RefusedError("not-owner", node=head.owner, epoch=head.epoch)
    known = tuple(sorted({*head.holders, *holders}))
    return replace(head, holders=_members(head, known))


def join(head: Head, *, node: str, epoch: int, members: tuple[str, ...]) -> Head:
    """
    Return the head after *members* are to keep copies as well.

    The owner decides; once it has released the volume, any node may. The vote of a new
    member counts like that of any other.

    Raises:
        RefusedError: not-owner.

    """
    _require_deciding(head, node, epoch)
    new = tuple(each for each in members if each not in head.members)
    return replace(head, members=(*head.members, *new))


def leave(
    head: Head,
    *,
    node: str,
    epoch: int,
    members: tuple[str, ...],
    standing: Collection[str],
    keep: int = 1,
) -> Head:
    """
    Return the head after *members* are to keep no copies any more.

    At least *keep* other holders must be *standing*: they have just said that they have
    what is committed. Nodes that may have newer bytes have to stay: the owner, and all
    members after an owner that has not released it.

    Raises:
        RefusedError: not-owner; locked: one of them is the owner; last-copy.

    """
    _require_deciding(head, node, epoch)
    if head.phase == "owned" and head.owner in members:
        raise RefusedError("locked", node=head.owner)
    holders = tuple(each for each in head.holders if each not in members)
    sure = {*holders}.intersection(standing)
    if head.committed == EMPTY or len(sure) < max(1, keep):
        alone = next(iter(holders or head.holders), head.owner)
        raise RefusedError("last-copy", node=alone, commit=head.committed)
    rest = tuple(each for each in head.members if each not in members)
    return replace(head, members=rest, holders=holders)


def release(
    head: Head, *, node: str, epoch: int, commit: Commit, holders: tuple[str, ...]
) -> Head:
    """
    Return the head after the owner has sealed *commit* and lets the volume go.

    The commit counts even if nobody else has it: nobody may pass it over.

    Raises:
        RefusedError: not-owner.

    """
    published = publish(
        head,
        node=node,
        epoch=epoch,
        commit=commit,
        holders=holders,
        quality="quiesced",
    )
    return replace(published, phase="idle")


def abandon(head: Head, *, node: str, epoch: int) -> Head:
    """Return the head after an owner has given up recovering *epoch*; see `acquire`."""
    if head.epoch != epoch or head.owner != node or head.phase != "recovering":
        raise RefusedError("not-owner", node=head.owner, epoch=head.epoch)
    return replace(head, phase="idle")


def remove(head: Head, *, locked_by: str) -> Head:
    """
    Return the head of a volume that is being removed; nobody acquires it any more.

    A released one changes in nothing else, so that `keep` gives it back as it was.
    One that is locked is refused.
    """
    if locked_by:
        raise RefusedError("locked", node=locked_by)
    raised = not (head.released or head.phase == "removing")
    return replace(head, epoch=head.epoch + raised, phase="removing")


def keep(head: Head) -> Head:
    """Return the head of a volume whose removal was refused: it can be acquired."""
    return replace(head, phase="idle")


def _require_deciding(head: Head, node: str, epoch: int) -> None:
    owns = head.owner == node and head.phase == "owned"
    if head.epoch != epoch or not (owns or head.released):
        raise RefusedError("not-owner", node=head.owner, epoch=head.epoch)


def _members(head: Head, nodes: tuple[str, ...]) -> tuple[str, ...]:
    """Return those of *nodes* that are members: only they are sure to keep copies."""
    return tuple(each for each in nodes if each in head.members)


# The copy state


def seal(copy: CopyState, *, gone_back: bool = False) -> CopyState:
    """
    Return the copy state after its live bytes, if any, have become a commit.

    If they have *gone_back* that would have another one's number: they stay live.
    """
    if not copy.live_epoch or gone_back:
        return copy
    return replace(commit_live(copy), live_epoch=0)


def commit_live(copy: CopyState) -> CopyState:
    """Return an owner's copy state after one more commit; the copy stays live."""
    commit = Commit(copy.live_epoch, copy.next_seq)
    return replace(copy, commit=commit, next_seq=copy.next_seq + 1)


def promise(
    copy: CopyState,
    epoch: int,
    lineage: Lineage,
    *,
    writers_stopped: bool,
    gone_back: bool = False,
) -> CopyState:
    """
    Return the copy state that has promised *epoch*; its commit is its vote.

    A former owner's live copy is sealed, so that nothing of it is lost; see `seal`.

    Raises:
        RefusedError: stale-epoch; writers-running: it has no vote.

    """
    if epoch < copy.promised:
        raise RefusedError("stale-epoch", epoch=copy.promised)
    lineage.require_known(copy.newest_epoch, at=epoch)
    if copy.live_epoch and copy.live_epoch < epoch and not writers_stopped:
        raise RefusedError("writers-running", epoch=copy.live_epoch)
    sealed = seal(copy, gone_back=gone_back) if copy.live_epoch < epoch else copy
    return replace(sealed, promised=epoch)


def take_over(copy: CopyState, *, epoch: int, base: Commit, lineage: Lineage) -> Kept:
    """
    Return a recovering owner's copy state after it has taken *base* from a holder.

    *lineage* includes *epoch*, the one that it recovers.

    Raises:
        RefusedError: stale-epoch: it has promised another, or has begun this one.

    """
    if copy.promised != epoch or copy.newest_epoch >= epoch:
        raise RefusedError("stale-epoch", epoch=copy.promised)
    grown = copy.commit <= base and lineage.contains(copy.commit, at=epoch)
    taken = replace(copy, commit=base, live_epoch=0)
    return Kept(taken, keep_live=copy.live_epoch > 0, keep_commit=not grown)


def go_live(copy: CopyState, *, epoch: int, base: Commit, lineage: Lineage) -> Kept:
    """
    Return the owner's copy state as *epoch* begins with *base*, which it now holds.

    *lineage* includes the new epoch.

    Raises:
        RefusedError: stale-epoch: another owner has been promised meanwhile.

    """
    if copy.promised != epoch:
        raise RefusedError("stale-epoch", epoch=copy.promised)
    grown = copy.commit <= base and lineage.contains(copy.commit, at=epoch)
    live = replace(copy, commit=base, live_epoch=epoch, next_seq=1)
    return Kept(live, keep_commit=not grown)


def receive(
    copy: CopyState, commit: Commit, lineage: Lineage, *, at: int, writers_stopped: bool
) -> Kept | None:
    """
    Return the copy state after it has taken *commit* in; None if it has that already.

    *at* is the epoch of the head that allows it. Of a released volume it may be later
    than the commit's: whoever was promised those since has given them up.

    Raises:
        RefusedError: stale-epoch, writers-running; nothing may change.

    """
    # To an owner whose disk has gone back, its own later commits come.
    least = Commit(copy.live_epoch, copy.next_seq) if copy.live_epoch else Commit(1)
    if at < copy.promised or commit < least:
        raise RefusedError("stale-epoch", epoch=max(copy.promised, copy.live_epoch))
    # What an unknown epoch has grown out of, nothing tells either.
    lineage.require_known(max(copy.newest_epoch, commit.epoch), at=at)
    if copy.live_epoch and not writers_stopped:
        raise RefusedError("writers-running", epoch=copy.live_epoch)
    if commit.epoch == copy.commit.epoch and commit <= copy.commit:
        return None
    taken = replace(copy, promised=at, commit=commit, live_epoch=0)
    return Kept(
        taken,
        keep_live=copy.live_epoch > 0,
        keep_commit=not lineage.contains(copy.commit, at=commit.epoch),
    )
