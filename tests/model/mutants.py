"""Rules that are wrong in one point each; the search must find out every one."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import msgspec

from plugin.ownership import rules, votes
from plugin.ownership.state import (
    EMPTY,
    Choice,
    Commit,
    CopyState,
    Head,
    Kept,
    Lineage,
    RefusedError,
)

from .world import mutant

replace = msgspec.structs.replace


def _promise_is_forgotten(
    replica: CopyState, epoch: int, lineage: Lineage, **rest: Any
) -> CopyState:
    given = rules.promise(replace(replica, promised=0), epoch, lineage, **rest)
    return replace(given, promised=replica.promised)


def _go_live_unasked(replica: CopyState, *, epoch: int, **rest: Any) -> Kept:
    return rules.go_live(replace(replica, promised=epoch), epoch=epoch, **rest)


def _receive_from_anybody(
    replica: CopyState, *arguments: Any, **rest: Any
) -> Kept | None:
    return rules.receive(replace(replica, promised=0), *arguments, **rest)


def _live_is_overwritten(*arguments: Any, **rest: Any) -> Kept | None:
    kept = rules.receive(*arguments, **rest)
    return kept and Kept(kept.copy, keep_commit=kept.keep_commit)


def _diverged_is_overwritten(*arguments: Any, **rest: Any) -> Kept | None:
    kept = rules.receive(*arguments, **rest)
    return kept and Kept(kept.copy, keep_live=kept.keep_live)


def _own_diverged_is_overwritten(*arguments: Any, **rest: Any) -> Kept:
    return Kept(rules.go_live(*arguments, **rest).copy)


def _anything_will_do(*arguments: Any, accept_loss: bool) -> Choice:
    choice = rules.choose(*arguments, accept_loss=True)
    return Choice(choice.base, choice.holders)


def _empty_will_do(
    head: Head, lineage: Lineage, votes: dict[str, Commit], *, accept_loss: bool
) -> Choice:
    base = max(votes.values())
    if base == EMPTY and accept_loss:
        return Choice(base, tuple(votes), head.committed)
    return rules.choose(head, lineage, votes, accept_loss=accept_loss)


def _lineage_is_not_asked(
    head: Head, lineage: Lineage, votes: dict[str, Commit], *, accept_loss: bool
) -> Choice:
    del lineage, accept_loss
    base = max(votes.values())
    if base < head.committed:
        raise RefusedError("newer-elsewhere")
    return Choice(base, tuple(votes))


def _release_in_silence(head: Head, **rest: Any) -> Head:
    return replace(rules.release(head, **rest), committed=head.committed)


def _sequence_is_reused(replica: CopyState) -> CopyState:
    return replace(rules.commit_live(replica), next_seq=replica.next_seq)


def _acquire_in_the_same_epoch(head: Head, **rest: Any) -> Head:
    return replace(rules.acquire(head, **rest), epoch=max(head.epoch, 1))


def _acquire_a_removed_volume(head: Head, **rest: Any) -> Head:
    return rules.acquire(replace(head, phase="idle"), **rest)


def _resume_whatever_happened(head: Head, *, node: str, epoch: int, **_: Any) -> Head:
    return replace(head, owner=node, epoch=epoch, phase="owned")


def _quality_is_inherited(head: Head, choice: Choice) -> Head:
    return replace(rules.begin(head, choice), quality=head.quality)


def _anybody_joins(head: Head, *, node: str, epoch: int, **rest: Any) -> Head:
    return rules.join(replace(head, owner=node), node=node, epoch=epoch, **rest)


def _anybody_leaves(head: Head, *, members: tuple[str, ...], **_: Any) -> Head:
    rest = tuple(each for each in head.members if each not in members)
    return replace(head, members=rest)


def _who_counts_as_a_holder_is_not_asked(head: Head, **rest: Any) -> Head:
    return rules.leave(head, **{**rest, "standing": head.holders})


def _anybody_holds(head: Head, *, holders: tuple[str, ...], **rest: Any) -> Head:
    return replace(rules.publish(head, holders=holders, **rest), holders=holders)


def _publish_whatever_is_older(head: Head, *, commit: Commit, **rest: Any) -> Head:
    return replace(rules.publish(head, commit=commit, **rest), committed=commit)


def _whoever_left_votes(head: Head, *arguments: Any, **rest: Any) -> Choice:
    return rules.choose(replace(head, members=tuple("abc")), *arguments, **rest)


def _the_silent_are_dead(*_: Any, **__: Any) -> set[str]:
    return set()


def _members_are_not_missed(
    head: Head, votes: dict[str, Commit], choice: Choice, *, orderly: bool
) -> set[str]:
    del orderly
    return {*head.holders} - {*votes} if choice.lost else set()


def _nobody_is_missed_after_a_release(*arguments: Any, orderly: bool) -> set[str]:
    return set() if orderly else votes.unheard(*arguments, orderly=orderly)


def _given_up_is_released(head: Head) -> bool:
    return head.phase == "idle"


def _a_release_is_for_ever(head: Head, choice: Choice) -> Head:
    return replace(rules.begin(head, choice), released_at=head.released_at)


def _whoever_gives_up_forgets_the_release(head: Head, **rest: Any) -> Head:
    return replace(rules.acquire(head, **rest), released_at="")


def _given_up_is_not_released(rule: Any) -> Any:
    def wrong(head: Head, **rest: Any) -> Head:
        changed: Head = rule(replace(head, released_at=""), **rest)
        return replace(changed, released_at=head.released_at)

    return wrong


def _given_up_gets_members(head: Head, **rest: Any) -> Head:
    joined = rules.join(replace(head, released_at="now"), **rest)
    return replace(joined, released_at=head.released_at)


def _a_promise_to_who_gave_up_holds(
    copy: CopyState, commit: Commit, *arguments: Any, at: int, **rest: Any
) -> Kept | None:
    del at
    return rules.receive(copy, commit, *arguments, at=commit.epoch, **rest)


def _a_promise_to_who_gave_up_is_forgotten(
    copy: CopyState, commit: Commit, *arguments: Any, **rest: Any
) -> Kept | None:
    kept = rules.receive(copy, commit, *arguments, **rest)
    if kept is None:
        return None
    return dataclasses.replace(kept, copy=replace(kept.copy, promised=commit.epoch))


def _writers_may_run_on(
    replica: CopyState, epoch: int, lineage: Lineage, **rest: Any
) -> CopyState:
    rest["writers_stopped"] = True
    return rules.promise(replica, epoch, lineage, **rest)


def _nothing_has_gone_back(*_: Any) -> bool:
    return False


def _everything_is_superseded(*_: Any) -> bool:
    return True


def _nothing_has_diverged(*_: Any) -> bool:
    return False


class _Unsuspecting(Lineage):
    """A lineage for which no copy is newer than the records."""

    __slots__ = ()

    def require_known(self, epoch: int, *, at: int, node: str = "") -> None:
        del epoch, at, node


def _older_records_are_promised(
    replica: CopyState, epoch: int, lineage: Lineage, **rest: Any
) -> CopyState:
    return rules.promise(replica, epoch, _Unsuspecting(lineage.epochs), **rest)


def _older_records_are_chosen_by(
    head: Head, lineage: Lineage, *arguments: Any, **rest: Any
) -> Choice:
    return rules.choose(head, _Unsuspecting(lineage.epochs), *arguments, **rest)


def _older_records_are_followed(
    copy: CopyState, commit: Commit, lineage: Lineage, **rest: Any
) -> Kept | None:
    return rules.receive(copy, commit, _Unsuspecting(lineage.epochs), **rest)


def _whatever_was_asked_for_is_taken(
    copy: CopyState, *, epoch: int, **rest: Any
) -> Kept:
    del epoch
    return rules.take_over(copy, epoch=copy.promised, **rest)


def _what_comes_after_a_release_is_taken(
    copy: CopyState, *, epoch: int, base: Commit, lineage: Lineage
) -> Kept:
    if copy.live_epoch or copy.commit.epoch < epoch or copy.promised != epoch:
        return rules.take_over(copy, epoch=epoch, base=base, lineage=lineage)
    return Kept(replace(copy, commit=base), keep_commit=True)


def _with(**functions: Any) -> SimpleNamespace:
    """Return mutated rules, in which `release` and `seal` use mutated helpers too."""
    made = mutant(**functions)
    if "commit_live" in functions:
        made.seal = lambda replica, *, gone_back: (
            replace(functions["commit_live"](replica), live_epoch=0)
            if replica.live_epoch and not gone_back
            else replica
        )
    return made


MUTANTS = {
    "a promise is forgotten": _with(
        promise=_promise_is_forgotten, go_live=_go_live_unasked
    ),
    "an owner begins though another was promised": _with(go_live=_go_live_unasked),
    "an old owner's commit is taken": _with(receive=_receive_from_anybody),
    "a live tree is overwritten": _with(receive=_live_is_overwritten),
    "a diverged copy is overwritten": _with(receive=_diverged_is_overwritten),
    "an owner's diverged copy is overwritten": _with(
        go_live=_own_diverged_is_overwritten
    ),
    "any copy will do": _with(choose=_anything_will_do),
    "an empty copy will do": _with(choose=_empty_will_do),
    "the lineage is not asked": _with(choose=_lineage_is_not_asked),
    "a release is not published": _with(release=_release_in_silence),
    "what is committed is published again": _with(publish=_publish_whatever_is_older),
    "a sequence number is used twice": _with(commit_live=_sequence_is_reused),
    "an owner does not raise the epoch": _with(acquire=_acquire_in_the_same_epoch),
    "anybody makes members": _with(join=_anybody_joins),
    "a removed volume is acquired": _with(acquire=_acquire_a_removed_volume),
    "an owner resumes whatever has happened": _with(resume=_resume_whatever_happened),
    "another commit's quality is told": _with(begin=_quality_is_inherited),
}
# Of who keeps copies; looked for in scopes in which members come and go.
MEMBERS_MUTANTS = {
    "the last holder leaves": _with(leave=_anybody_leaves),
    "who is no member counts as a holder": _with(publish=_anybody_holds),
    "who has left votes with an old copy": _with(choose=_whoever_left_votes),
    "a copy that nobody else has is thrown away": _with(
        superseded=_everything_is_superseded, diverged=_nothing_has_diverged
    ),
    "who gives up forgets the release": _with(
        acquire=_whoever_gives_up_forgets_the_release
    ),
    "who gave up keeps members out": _with(join=_given_up_is_not_released(rules.join)),
    "who gave up keeps holders out": _with(
        spread=_given_up_is_not_released(rules.spread)
    ),
    "whatever was given up gets members": _with(join=_given_up_gets_members),
    "a promise to who gave up keeps the commit out": _with(
        receive=_a_promise_to_who_gave_up_holds
    ),
    "a promise to who gave up is forgotten": _with(
        receive=_a_promise_to_who_gave_up_is_forgotten
    ),
}
# Of pools that come back from backups.
BACKUPS_MUTANTS = {
    "who counts as a holder is not asked": _with(
        leave=_who_counts_as_a_holder_is_not_asked
    ),
    "what has gone back is sealed": _with(gone_back=_nothing_has_gone_back),
}
# Of time; looked for in scopes in which nodes are slow.
TIME_MUTANTS = {
    "who is silent is dead": _with(unheard=_the_silent_are_dead),
    "only holders are waited for": _with(unheard=_members_are_not_missed),
    "after a release nobody is waited for": _with(
        unheard=_nobody_is_missed_after_a_release
    ),
    "who gave up has released": _with(was_released=_given_up_is_released),
    "a release holds for later owners": _with(begin=_a_release_is_for_ever),
    "a vote comes before the writers have ended": _with(promise=_writers_may_run_on),
}
# What random ways seldom find: the way on which each is wrong in its last step.
ON_A_WAY = {
    "what was asked for is taken in whenever it comes": (
        _with(take_over=_whatever_was_asked_for_is_taken),
        (
            "acquire a|vote a for a|vote b for a|a hears b|begin a 1 from 0.0|"
            "go live a|sync a 1.1|receive 1.1 on b|write a|seal a 1.2|release a|"
            "acquire b|vote b for b|vote a for b|b hears a|b asks for 1.2|abandon b|"
            "the lease of a ends|acquire b|vote b for b|begin b 3 from 1.1|pull b 1.2"
        ),
    ),
    "what comes after its epoch has ended is taken in": (
        _with(take_over=_what_comes_after_a_release_is_taken),
        (
            "acquire a|vote a for a|vote b for a|a hears b|begin a 1 from 0.0|"
            "go live a|write a|seal a 1.1|release a|acquire b|vote b for b|"
            "vote a for b|b hears a|b asks for 1.1|begin b 2 from 1.1|go live b|"
            "write b|seal b 2.1|release b|pull b 1.1"
        ),
    ),
    "containers are ended for a promise to older records": (
        _with(promise=_older_records_are_promised),
        (
            "dump|acquire a|vote a for a|begin a 1 from 0.0|go live a|write a|load|"
            "acquire b|abandon b|acquire b|vote a for b"
        ),
    ),
    "a newer copy takes what older records name": (
        _with(receive=_older_records_are_followed),
        (
            "acquire a|vote a for a|begin a 1 from 0.0|go live a|write a|seal a 1.1|"
            "release a|follow a|receive 1.1 on b|spread a|dump|acquire a|vote a for a|"
            "begin a 2 from 1.1|go live a|write a|seal a 2.1|release a|load|acquire b|"
            "abandon b|follow b|receive 1.1 on a"
        ),
    ),
}
OLDER_RECORDS = _with(
    promise=_older_records_are_promised, choose=_older_records_are_chosen_by
)
