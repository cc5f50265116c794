"""The judge of replicated volumes: right histories pass, planted bugs are caught."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab import writer
from tests.lab.replication_checker import lost_records, violations
from tests.lab.replication_facts import (
    Begun,
    Contents,
    Copy,
    Facts,
    Head,
    Mark,
    Promised,
    Received,
    Record,
    Session,
    read_writer,
)
from tests.lab.writer import FILES, PAGES

NAME = "v"
LAST = 40
ORDERLY, LOST_AT = 30, 25


def contents(*records: Record, pages: tuple[Record, ...] | None = None) -> Contents:
    """Return what a volume holds after *records*, in order."""
    logs = tuple(tuple(r for r in records if r[1] % FILES == f) for f in range(FILES))
    written = dict.fromkeys(range(PAGES), (0, 0))
    for record in records:
        written[record[1] % PAGES] = record
    known = tuple(written.values()) if pages is None else pages
    return Contents(logs, known, known)


def run(session: int, last: int) -> list[Record]:
    return [(session, number) for number in range(1, last + 1)]


FIRST, KEPT, TAIL = run(1, ORDERLY), run(2, LOST_AT), run(2, LAST)


def sessions() -> list[Session]:
    """Return three: alpha ends orderly, beta does not, gamma has what was kept."""
    alpha = Session(
        number=1,
        volume=NAME,
        node="alpha",
        epoch=1,
        acknowledged=ORDERLY,
        released=(1, 9),
        marks=[Mark((1, 2), 8), Mark((1, 4), 16)],
    )
    seen = {3: (1, 9), 9: (2, 1), 14: (2, 1), 20: (2, 2), 30: (2, 4)}
    beta = Session(
        number=2,
        volume=NAME,
        node="beta",
        epoch=2,
        found=contents(*FIRST),
        acknowledged=LAST,
        marks=[Mark(commit, number) for number, commit in seen.items()],
    )
    gamma = Session(
        number=3,
        volume=NAME,
        node="gamma",
        epoch=4,
        found=contents(*FIRST, *KEPT),
        acknowledged=10,
        released=(4, 3),
    )
    return [alpha, beta, gamma]


def copies() -> list[Copy]:
    """Return three that are alike; beta has set apart what was lost."""
    rows = {"": (0o755, 0, 0, 1, 0), "log-0": (0o600, 0, 0, 2, 320)}
    return [
        Copy(
            volume=NAME,
            node=node,
            commit=(4, 3),
            live_epoch=0,
            contents=contents(*FIRST, *KEPT, *run(3, 10)),
            entries={path: (*row, "digest") for path, row in rows.items()},
            manifest_commit=(4, 3),
            manifest=rows,
            quarantine={"2.7": contents(*FIRST, *TAIL)} if node == "beta" else {},
        )
        for node in ("alpha", "beta", "gamma")
    ]


def history() -> Facts:
    """
    Return a right one: an orderly move from alpha, then beta's power fails.

    Gamma goes on without the end of what beta wrote, which beta has set apart.
    """
    return Facts(
        sessions=sessions(),
        begun=[
            Begun(NAME, 1, "alpha", (0, 0)),
            Begun(NAME, 2, "beta", (1, 9)),
            # Nobody could write in this one.
            Begun(NAME, 3, "alpha", (2, 4)),
            Begun(NAME, 4, "gamma", (2, 4)),
        ],
        received=[
            Received(NAME, "gamma", (1, 7), "alpha", 10),
            # What it had was set apart; a commit is logged after a promise of it.
            Received(NAME, "gamma", (2, 4), "beta", 31),
        ],
        promised=[
            Promised(NAME, "gamma", 2, (0, 0), 20),
            Promised(NAME, "gamma", 3, (2, 4), 30),
        ],
        copies=copies(),
        heads={NAME: Head((4, 3), ("alpha", "beta", "gamma"))},
    )


def broken(facts: Facts) -> set[str]:
    return {each.rule for each in violations(facts)}


def test_a_right_history() -> None:
    facts = history()
    assert violations(facts) == []
    assert lost_records(facts) == LAST - LOST_AT


def begun_twice(facts: Facts) -> None:
    facts.begun.append(Begun(NAME, 2, "gamma", (1, 9)))


def written_twice(facts: Facts) -> None:
    facts.sessions[2].epoch = 2


def taken_from_another(facts: Facts) -> None:
    facts.received.append(Received(NAME, "gamma", (2, 3), "alpha", 29))


def taken_after_a_promise(facts: Facts) -> None:
    facts.received.append(Received(NAME, "gamma", (2, 5), "beta", 32))


def lost_in_a_move(facts: Facts) -> None:
    facts.sessions[1].found = contents(*run(1, ORDERLY - 1))


def lost_at_rest(facts: Facts) -> None:
    final = contents(*run(1, ORDERLY), *run(2, LOST_AT), *run(3, 9))
    replace_copies(facts, contents=final)


def begun_with_less_than_was_released(facts: Facts) -> None:
    facts.begun[1] = Begun(NAME, 2, "beta", (1, 8))


def a_hole(facts: Facts) -> None:
    kept = run(2, LOST_AT)
    facts.sessions[2].found = contents(*run(1, ORDERLY), *kept[:5], *kept[8:])


def something_of_what_was_given_up(facts: Facts) -> None:
    final = contents(*run(1, ORDERLY), *run(2, LOST_AT + 3), *run(3, 10))
    replace_copies(facts, contents=final)


def less_than_was_committed(facts: Facts) -> None:
    facts.sessions[2].found = contents(*run(1, ORDERLY), *run(2, 2))


def an_older_base(facts: Facts) -> None:
    facts.begun[2] = facts.begun[3] = Begun(NAME, 4, "gamma", (2, 2))
    facts.begun[2] = Begun(NAME, 3, "alpha", (2, 2))


def a_head_that_goes_back(facts: Facts) -> None:
    facts.sessions[1].marks.append(Mark((2, 3), 35))
    facts.begun[2] = Begun(NAME, 3, "alpha", (2, 6))


def nobody_knows_the_base(facts: Facts) -> None:
    del facts.begun[3]


def mixed_pages(facts: Facts) -> None:
    known = facts.sessions[2].found
    older = ((1, 24), *known.pages[1:])
    facts.sessions[2].found = dataclasses.replace(known, pages=older)


def a_mapped_store_that_was_missed(facts: Facts) -> None:
    known = facts.sessions[1].found
    older = (*known.mapped[:-1], (known.mapped[-1][0], known.mapped[-1][1] - PAGES))
    facts.sessions[1].found = dataclasses.replace(known, mapped=older)


def pages_of_before_a_move(facts: Facts) -> None:
    known = facts.sessions[1].found
    older = contents(*run(1, ORDERLY - 3)).pages
    facts.sessions[1].found = dataclasses.replace(known, pages=older)


def pages_that_were_given_up(facts: Facts) -> None:
    known = facts.copies[0].contents
    pages = ((2, LAST), *known.pages[1:])
    replace_copies(facts, contents=dataclasses.replace(known, pages=pages))


def no_quarantine(facts: Facts) -> None:
    replace_copies(facts, quarantine={})


def no_pages_in_quarantine(facts: Facts) -> None:
    apart = contents(*run(1, ORDERLY), *run(2, LAST), pages=())
    replace_copies(facts, quarantine={"2.7": apart})


def half_a_record(facts: Facts) -> None:
    known = facts.copies[1].contents
    facts.copies[1] = dataclasses.replace(
        facts.copies[1], contents=dataclasses.replace(known, broken=1)
    )


def half_a_record_found(facts: Facts) -> None:
    found = dataclasses.replace(facts.sessions[1].found, broken=1)
    facts.sessions[1].found = found


def another_size_on_disk(facts: Facts) -> None:
    entries = {**facts.copies[2].entries, "log-0": (0o600, 0, 0, 2, 288, "digest")}
    facts.copies[2] = dataclasses.replace(facts.copies[2], entries=entries)


def other_bytes_of_one_size(facts: Facts) -> None:
    entries = {**facts.copies[2].entries, "log-0": (0o600, 0, 0, 2, 320, "other")}
    facts.copies[2] = dataclasses.replace(facts.copies[2], entries=entries)


def an_older_manifest(facts: Facts) -> None:
    facts.copies[2] = dataclasses.replace(facts.copies[2], manifest_commit=(4, 2))


def a_copy_that_is_live(facts: Facts) -> None:
    facts.copies[2] = dataclasses.replace(facts.copies[2], live_epoch=4)


def a_holder_without_a_copy(facts: Facts) -> None:
    del facts.copies[2]


def replace_copies(facts: Facts, **values: object) -> None:
    facts.copies[:] = [
        dataclasses.replace(each, **values)  # type: ignore[arg-type]
        for each in facts.copies
    ]


PLANTED: dict[Callable[[Facts], None], str] = {
    begun_twice: "an_epoch_has_one_writer",
    written_twice: "an_epoch_has_one_writer",
    taken_from_another: "an_epoch_has_one_writer",
    taken_after_a_promise: "nothing_is_taken_from_an_epoch_that_is_over",
    lost_in_a_move: "orderly_moves_lose_nothing",
    lost_at_rest: "orderly_moves_lose_nothing",
    begun_with_less_than_was_released: "orderly_moves_lose_nothing",
    a_hole: "failovers_lose_only_a_suffix",
    something_of_what_was_given_up: "failovers_lose_only_a_suffix",
    less_than_was_committed: "failovers_lose_at_most_what_was_announced",
    an_older_base: "failovers_lose_at_most_what_was_announced",
    a_head_that_goes_back: "failovers_lose_at_most_what_was_announced",
    nobody_knows_the_base: "failovers_lose_at_most_what_was_announced",
    mixed_pages: "pages_are_of_one_moment",
    a_mapped_store_that_was_missed: "pages_are_of_one_moment",
    pages_of_before_a_move: "pages_are_of_one_moment",
    pages_that_were_given_up: "pages_are_of_one_moment",
    no_quarantine: "every_byte_is_somewhere",
    no_pages_in_quarantine: "every_byte_is_somewhere",
    half_a_record: "everything_is_whole",
    half_a_record_found: "everything_is_whole",
    another_size_on_disk: "copies_are_what_their_manifests_say",
    other_bytes_of_one_size: "copies_are_what_their_manifests_say",
    an_older_manifest: "copies_are_what_their_manifests_say",
    a_copy_that_is_live: "copies_are_what_their_manifests_say",
    a_holder_without_a_copy: "copies_are_what_their_manifests_say",
}


@pytest.mark.parametrize("plant", PLANTED, ids=lambda each: each.__name__)
def test_a_planted_bug_is_caught(plant: Callable[[Facts], None]) -> None:
    facts = history()
    plant(facts)
    assert PLANTED[plant] in broken(facts)


def test_a_loss_that_was_announced() -> None:
    facts = history()
    facts.begun[3] = Begun(NAME, 4, "gamma", (2, 2), lost=(2, 4))
    assert violations(facts) == []


def test_a_power_failure_leaves_the_room_of_what_was_not_acknowledged() -> None:
    file = (LAST + 1) % FILES
    for acknowledged, right in ((LAST, True), (LAST + FILES, False)):
        facts = history()
        facts.sessions[1].acknowledged = acknowledged
        written = contents(*run(1, ORDERLY), *run(2, LAST))
        logs = [*written.logs]
        logs[file] = (*logs[file], (0, 0))
        found = dataclasses.replace(written, logs=tuple(logs))
        facts.sessions[2].found = found
        facts.begun[3] = Begun(NAME, 4, "gamma", (2, 9))
        told = [
            each.evidence
            for each in violations(facts)
            if "session 2 on" in each.evidence and "in the place of" in each.evidence
        ]
        assert (told == []) == right


def test_what_the_writer_tells_is_read(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It ends in good order, and another session finds all of it."""
    volume = tmp_path / "live"
    volume.mkdir()
    before = signal.getsignal(signal.SIGTERM)
    sessions = []
    try:
        for number in (1, 2):
            end = threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGTERM))
            end.start()
            log = tmp_path / f"log-of-{number}"
            writer.write(str(volume), number, str(log))
            end.join()
            told = capfd.readouterr().out
            assert log.read_text() == told
            session = Session(number=number, volume=NAME, node="alpha", epoch=number)
            assert read_writer(session, told)
            sessions.append(session)
    finally:
        signal.signal(signal.SIGTERM, before)
    first, second = sessions
    assert first.acknowledged > PAGES
    assert second.found == contents(*run(1, first.acknowledged))
    copy = Copy.of(NAME, "alpha", json.dumps(writer.look(str(tmp_path))))
    written = [*run(1, first.acknowledged), *run(2, second.acknowledged)]
    assert copy.contents == contents(*written)
    assert {"", "log-0", "pages"} <= {*copy.entries}
    damage = volume / "log-1"
    damage.write_bytes(damage.read_bytes()[:-1] + b"x")
    assert Contents.of(writer.read_contents(str(volume))).broken == 1


def test_a_writer_of_much_tells_what_is_not_whole(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    end = threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGTERM))
    end.start()
    try:
        writer.write(str(tmp_path), 1, str(tmp_path / "log"), 2)
        end.join()
    finally:
        signal.signal(signal.SIGTERM, before)
    capfd.readouterr()
    assert (tmp_path / "big").stat().st_size == 2 * 2**20
    assert Contents.of(writer.read_contents(str(tmp_path))).broken == 0
    (tmp_path / "small/1").write_text("half")
    with (tmp_path / "big").open("r+b") as big:
        big.seek(7919 % 512 * writer.PAGE_BYTES)
        big.write(b"torn")
    assert Contents.of(writer.read_contents(str(tmp_path))).broken == 2
