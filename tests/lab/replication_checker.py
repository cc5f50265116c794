"""
The judge of what a campaign has done to replicated volumes.

A rule is a function from facts to what breaks it. What cannot be known is not held
against anybody: a record that was under way when the power failed may be there or not.
All else is strict. Sessions of a volume follow each other, whatever wrote on elsewhere
meanwhile: what the next one finds is a beginning of what the one before has written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Final

from .invariants import Violation
from .replication_facts import (
    Begun,
    Commit,
    Contents,
    Copy,
    Facts,
    Record,
    Session,
)
from .writer import FILES, PAGES

PAGED: Final = ("pages", "mapped")


@dataclass(frozen=True, slots=True)
class Change:
    """From a session to what was found next: by another one, or at rest at the end."""

    before: Session
    found: Contents
    # The epoch of who found it, None at the end.
    epoch: int | None
    # What the last one's last commit, or an older one, has become the next one's base.
    base: Commit | None
    # Newer commits that were given up, with a line in the log, on the way.
    announced: tuple[Commit, ...]

    @property
    def kept_all(self) -> bool:
        """Whether nothing at all may be missing."""
        if self.epoch in (None, self.before.epoch):
            return True
        released, base = self.before.released, self.base
        return released is not None and base is not None and base >= released

    def __str__(self) -> str:
        then = "the end" if self.epoch is None else f"epoch {self.epoch}"
        before = self.before
        return (
            f"{before.volume}, session {before.number} on {before.node} in epoch "
            f"{before.epoch}, then {then} from {self.base}"
        )


def violations(facts: Facts) -> list[Violation]:
    """Return everything in *facts* that must not be."""
    return [
        Violation(rule.__name__, evidence) for rule in RULES for evidence in rule(facts)
    ]


def an_epoch_has_one_writer(facts: Facts) -> Iterator[str]:
    """Yield epochs that two nodes began, wrote in, or had commits of accepted."""
    owners: dict[tuple[str, int], str] = {}
    for begun in facts.begun:
        owner = owners.setdefault((begun.volume, begun.epoch), begun.owner)
        if owner != begun.owner:
            yield f"{owner} began it already: {begun}"
    for taken in facts.received:
        owner = owners.get((taken.volume, taken.commit[0]), taken.sender)
        if owner != taken.sender:
            yield f"{owner} owned the epoch: {taken}"
    nodes: dict[tuple[str, int], str] = {}
    for session in facts.sessions:
        node = nodes.setdefault((session.volume, session.epoch), session.node)
        if node != session.node:
            yield (
                f"{session.volume}, epoch {session.epoch}: {node} wrote, and then "
                f"{session.node} in session {session.number}"
            )


def nothing_is_taken_from_an_epoch_that_is_over(facts: Facts) -> Iterator[str]:
    """
    Yield commits that a member took although it had promised a newer epoch.

    A commit is logged when it has been applied, perhaps after a promise that knows it.
    """
    for promised in facts.promised:
        for taken in facts.received:
            if (
                (taken.volume, taken.member) == (promised.volume, promised.member)
                and taken.commit[0] < promised.epoch
                and taken.commit > promised.commit
                and taken.line > promised.line
            ):
                yield f"{taken} beside {promised}"


def orderly_moves_lose_nothing(facts: Facts) -> Iterator[str]:
    """Yield acknowledged records that were gone after an orderly end."""
    for change in _changes(facts):
        before = change.before
        if change.kept_all:
            wanted = _acknowledged(before)
            if missing := sorted(wanted - change.found.records()):
                yield f"{change}: {_shown(missing)} are missing"
        elif before.released is not None and not change.announced:
            yield f"{change}: {before.released} was released and not begun with"


def failovers_lose_only_a_suffix(facts: Facts) -> Iterator[str]:
    """Yield what was found that is no beginning of what had been written."""
    for change in _changes(facts):
        attempted = change.before.acknowledged + 1
        for file, log in enumerate(change.found.logs):
            number = change.before.number
            written = [
                *change.before.found.logs[file],
                *((number, n) for n in _numbers(file, attempted)),
            ]
            # A power failure may leave the room of what was never acknowledged.
            last = written[len(log) - 1 :] == [(number, attempted)]
            found = log[:-1] if last and log[-1:] == ((0, 0),) else log
            if list(found) != written[: len(found)]:
                odd = next(
                    (pair for pair in zip(found, written, strict=False) if _odd(pair)),
                    (found[len(written) :][:1], None),
                )
                yield f"{change}: log-{file} has {odd[0]} in the place of {odd[1]}"


def failovers_lose_at_most_what_was_announced(facts: Facts) -> Iterator[str]:
    """Yield losses of what had been committed, unless the log says that it was lost."""
    for change in _changes(facts):
        if change.kept_all:
            continue
        marks = change.before.marks
        if change.base is None:
            yield f"{change}: nobody has told with what the epoch began"
            continue
        newest = max((each.commit for each in marks), default=(0, 0))
        if change.base < newest and not change.announced:
            yield f"{change}: {newest} had been committed"
        if any(one.commit > two.commit for one, two in pairwise(marks)):
            yield f"{change}: the head went back from one commit to an earlier one"
        promised = _promised_record(change)
        wanted = {(change.before.number, n) for n in range(1, promised + 1)}
        if missing := sorted(wanted - change.found.records()):
            yield f"{change}: {_shown(missing)} were in the commit"


def pages_are_of_one_moment(facts: Facts) -> Iterator[str]:
    """Yield files whose pages were found as they had been at no moment."""
    for volume in facts.volumes():
        for file in PAGED:
            yield from _pages_of_no_moment(facts, volume, file)


def _pages_of_no_moment(facts: Facts, volume: str, file: str) -> Iterator[str]:
    writes: list[Record] = []
    for change in _changes_of(facts, volume):
        number = change.before.number
        attempted = change.before.acknowledged + 1
        writes += [(number, n) for n in range(1, attempted + 1)]
        places = {record: place for place, record in enumerate(writes)}
        found = getattr(change.found, file)
        pages = [each for each in found if each != (0, 0)]
        if unknown := [each for each in pages if each not in places]:
            yield f"{change}: {file} has {unknown}, which was given up before"
            continue
        last = max((places[each] for each in pages), default=-1)
        if found != (shown := _pages_after(writes[: last + 1])):
            yield f"{change}: {file} is {found}, never {shown}"
        if change.kept_all and last + 2 < len(writes):
            yield f"{change}: {file} ends with {writes[last]}"
        del writes[last + 1 :]


def every_byte_is_somewhere(facts: Facts) -> Iterator[str]:
    """Yield acknowledged records and pages that are in no copy and no quarantine."""
    for volume in facts.volumes():
        trees = [tree for copy in facts.copies_of(volume) for tree in _trees(copy)]
        there = set[Record]().union(*(each.records() for each in trees))
        changes = _changes_of(facts, volume)
        for change in changes:
            before = change.before
            if missing := sorted(_acknowledged(before) - there):
                yield f"{change}: {_shown(missing)} are nowhere"
            seen = [change.found, *trees]
            last = before.acknowledged
            for number in range(max(1, last - PAGES + 1), last + 1):
                page = number % PAGES
                for file in PAGED:
                    pages = [getattr(tree, file)[page : page + 1] for tree in seen]
                    if not any(
                        (before.number, number) <= each[0] < (before.number + 1, 0)
                        for each in pages
                        if each
                    ):
                        yield f"{change}: {file}'s record {number} is nowhere"


def everything_is_whole(facts: Facts) -> Iterator[str]:
    """Yield trees with records or pages of which only a part is there."""
    for session in facts.sessions:
        if session.found.broken:
            yield (
                f"{session.volume}: session {session.number} on {session.node} found "
                f"{session.found.broken} that are not whole"
            )
    for copy in facts.copies:
        if broken := sum(each.broken for each in _trees(copy)):
            yield f"{copy.volume} on {copy.node}: {broken} are not whole"


def copies_are_what_their_manifests_say(facts: Facts) -> Iterator[str]:
    """Yield copies at rest that are not their commit, and not alike."""
    for copy in facts.copies:
        head = facts.heads[copy.volume]
        where = f"{copy.volume} on {copy.node}"
        if copy.node not in head.holders:
            continue
        if copy.live_epoch or copy.commit != head.commit:
            live = f", live in epoch {copy.live_epoch}" if copy.live_epoch else ""
            yield f"{where} is at {copy.commit}{live}, the head says {head.commit}"
        if copy.manifest_commit != head.commit:
            yield f"{where}: the manifest is of {copy.manifest_commit}"
        plain = {path: row[:5] for path, row in copy.entries.items()}
        yield from _differences(f"{where}: disk and manifest", plain, copy.manifest)
    for volume in facts.volumes():
        head = facts.heads[volume]
        copies = [each for each in facts.copies_of(volume) if each.node in head.holders]
        if {each.node for each in copies} != {*head.holders} or not copies:
            yield f"{volume}: {head.holders} hold it, known are {len(copies)} copies"
        for one, two in pairwise(copies):
            where = f"{volume}: {one.node} and {two.node}"
            yield from _differences(where, one.entries, two.entries)


RULES: Final[Sequence[Callable[[Facts], Iterator[str]]]] = (
    an_epoch_has_one_writer,
    nothing_is_taken_from_an_epoch_that_is_over,
    orderly_moves_lose_nothing,
    failovers_lose_only_a_suffix,
    failovers_lose_at_most_what_was_announced,
    pages_are_of_one_moment,
    every_byte_is_somewhere,
    everything_is_whole,
    copies_are_what_their_manifests_say,
)


def lost_records(facts: Facts) -> int:
    """Return how many acknowledged records are not in the volumes, all in all."""
    return sum(
        len(_acknowledged(change.before) - change.found.records())
        for change in _changes(facts)
    )


def _changes(facts: Facts) -> Iterator[Change]:
    for volume in facts.volumes():
        yield from _changes_of(facts, volume)


def _changes_of(facts: Facts, volume: str) -> list[Change]:
    sessions = facts.sessions_of(volume)
    # The store keeps some epochs that nobody has logged; the log says what was lost.
    begun: dict[int, Begun] = {}
    for each in sorted(facts.begun, key=lambda one: one.lost is not None):
        if each.volume == volume:
            begun[each.epoch] = each
    changes = []
    for before, after in pairwise(sessions):
        base, announced = _origin(begun, after.epoch, before.epoch)
        changes.append(Change(before, after.found, after.epoch, base, announced))
    head = facts.heads[volume]
    for copy in facts.copies_of(volume):
        if copy.node in head.holders:
            changes.append(Change(sessions[-1], copy.contents, None, None, ()))
            break
    return changes


def _origin(
    begun: Mapping[int, Begun], epoch: int, before: int
) -> tuple[Commit | None, tuple[Commit, ...]]:
    """Return what *epoch* has of *before* or earlier, and what was given up for it."""
    announced: list[Commit] = []
    while epoch > before:
        known = begun.get(epoch)
        if known is None:
            return None, tuple(announced)
        if known.lost is not None:
            announced.append(known.lost)
        if known.base[0] <= before:
            return known.base, tuple(announced)
        epoch = known.base[0]
    return None, tuple(announced)


def _promised_record(change: Change) -> int:
    """
    Return the last record that the next one's base must have.

    A commit that was seen may have been begun before it was seen; so may the one after
    it. The one after that was begun when the former was known already.
    """
    marks = [
        (commit, max(each.acknowledged for each in group))
        for commit, group in groupby(change.before.marks, lambda each: each.commit)
    ]
    assert change.base is not None
    return max(
        (
            acknowledged
            for (_, acknowledged), (commit, _) in zip(marks, marks[2:], strict=False)
            if commit <= change.base
        ),
        default=0,
    )


def _numbers(file: int, last: int) -> range:
    """Return the numbers of the records up to *last* that are in *file*."""
    return range(file or FILES, last + 1, FILES)


def _acknowledged(session: Session) -> set[Record]:
    return {(session.number, n) for n in range(1, session.acknowledged + 1)}


def _pages_after(writes: Sequence[Record]) -> tuple[Record, ...]:
    """Return what the pages are after *writes*."""
    pages: dict[int, Record] = {}
    for session, number in reversed(writes):
        pages.setdefault(number % PAGES, (session, number))
        if len(pages) == PAGES:
            break
    return tuple(pages.get(page, (0, 0)) for page in range(max(pages, default=-1) + 1))


def _trees(copy: Copy) -> list[Contents]:
    return [copy.contents, *copy.quarantine.values()]


def _odd(pair: tuple[Record, Record]) -> bool:
    return pair[0] != pair[1]


def _shown(records: Sequence[Record]) -> str:
    return f"{len(records)} records from {records[0]} to {records[-1]}"


def _differences(
    where: str, one: Mapping[str, object], two: Mapping[str, object]
) -> Iterator[str]:
    for path in sorted({*one, *two}):
        if one.get(path) != two.get(path):
            yield f"{where} differ in {path!r}: {one.get(path)}, {two.get(path)}"
