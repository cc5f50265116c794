"""What is written down of a moment, and of volumes that began with two."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from backends.base import Volume
from backends.errors import InvalidRequestError
from backends.registry import Registry
from backends.rsync.backend import RsyncBackend
from backends.system.aside import begun
from plugin.errors import StoreError
from plugin.model import VolumeRecord
from plugin.ownership import rules
from plugin.ownership.heads import begun_epoch
from plugin.ownership.state import (
    EMPTY,
    WRITTEN_HERE,
    Choice,
    Commit,
    Epoch,
    Head,
    Lineage,
)
from plugin.replication import together
from plugin.replication.meeting import Meeting
from plugin.replication.together import Together
from plugin.volumes.options import OptionResolver
from tests.support.host import wait_until

AT, LATER = "2026-11-30T12:00:00.000Z", "2026-11-30T12:00:10.000Z"
HEAD = Head(
    epoch=2,
    owner="own",
    phase="owned",
    committed=Commit(2, 5),
    quality="snapshot",
    moment=AT,
    holders=("own", "other"),
    members=("own", "other"),
)
LINEAGE = Lineage({2: Epoch(EMPTY, "own")})


def publish(commit: Commit, moment: str) -> str:
    told = rules.publish(
        HEAD, node="own", epoch=2, commit=commit, holders=("other",), moment=moment
    )
    assert told.quality == ("snapshot" if commit == HEAD.committed else "fuzzy")
    return told.moment


def test_a_commit_has_its_moment() -> None:
    assert publish(Commit(2, 6), LATER) == LATER
    assert publish(Commit(2, 6), "") == ""
    # One that has not changed since is of a later one, too.
    assert publish(HEAD.committed, LATER) == LATER
    assert publish(HEAD.committed, "") == AT


@pytest.mark.parametrize(
    ("base", "owner", "moment", "head_moment"),
    [
        (Commit(2, 5), "other", AT, AT),
        (Commit(2, 6), "other", "", ""),  # nobody told of it
        (Commit(2, 6), "own", WRITTEN_HERE, ""),
    ],
)
def test_an_epoch_knows_the_moment_of_its_base(
    base: Commit, owner: str, moment: str, head_moment: str
) -> None:
    head = rules.acquire(HEAD, locked_by="", node=owner, boot_id="b")
    choice = Choice(base, ("other",))
    epoch = begun_epoch(head, choice, owner, LINEAGE)
    assert epoch.moment == moment
    assert not epoch.at_rest
    assert rules.begin(head, choice).moment == head_moment
    # The record of the next one has it among the earlier ones, without the moment.
    after = begun_epoch(head, choice, owner, Lineage({**LINEAGE.epochs, 3: epoch}))
    assert [each.number for each in after.earlier] == [2, 3]
    assert msgspec.json.decode(msgspec.json.encode(after), type=Epoch) == after


def test_a_group_has_a_name_and_a_moment(tmp_path: Path) -> None:
    backend = RsyncBackend(tmp_path / "pool", pool_id=None)
    backend.pool.initialise()
    assert backend.parse_options({"group": "a.b-c_1"}) == {"group": "a.b-c_1"}
    for name in ("", "-a", "a b", "ä", "a/b", "a" * 64):
        with pytest.raises(InvalidRequestError, match="'group': must be a name"):
            backend.parse_options({"group": name})
    volume = Volume(
        id="", name="v", options={"group": "a", "consistency": "fuzzy"}, created_at=""
    )
    with pytest.raises(InvalidRequestError, match="does not go with consistency=fuzzy"):
        RsyncBackend.require_creatable(backend, volume, filled=False)


class World:
    """Two volumes of a group, *epochs* of each, and what is told of them."""

    def __init__(self, **epochs: Epoch) -> None:
        self.records = {
            name: VolumeRecord(
                id=name,
                name=name,
                backend="rsync",
                requested={},
                options={"group": "g"},
                created_at="",
                phase="ready",
            )
            for name in epochs
        }
        self.lineages = {name: Lineage({3: each}) for name, each in epochs.items()}
        self.unreadable: set[str] = set()
        self.unmounted: set[str] = set()
        self.told: list[tuple[str, str]] = []
        ownership: Any = SimpleNamespace(
            heads=SimpleNamespace(lineage=self.lineage),
            events=SimpleNamespace(add=self._add),
            still_owner=lambda record, _: record.id not in self.unmounted,
        )
        moments: Any = SimpleNamespace(
            meeting_of=lambda *_: SimpleNamespace(
                was_due=False,
                leave=lambda _: None,
                landing=SimpleNamespace(leave=lambda _: None),
            )
        )
        progress: Any = SimpleNamespace(failure=lambda _: "it failed")
        self.together = Together(ownership, moments, progress, lambda _: [])

    def lineage(self, volume_id: str) -> Lineage:
        if volume_id in self.unreadable:
            raise StoreError("it cannot be read")
        return self.lineages[volume_id]

    def _add(self, record: VolumeRecord, kind: str, **facts: object) -> None:
        assert facts["group"] == "g"
        self.told.append((record.name, kind))

    def round(self) -> list[tuple[str, str]]:
        """Have a round; return what is told of the volumes' bases."""
        self.told = []
        held = [(each, 3) for each in self.records.values()]
        [unit] = self.together.units(held).values()
        self.together.round(unit, lambda *_: None)
        return sorted(self.told)


def test_a_round_that_hangs_is_left_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "_ROUND_MAX_S", 0.2)
    world = World(a=epoch(AT), b=epoch(AT))
    held = [(each, 3) for each in world.records.values()]
    hangs, worked = threading.Event(), list[str]()

    def work(record: VolumeRecord, *_: object) -> None:
        worked.append(record.name)
        if record.name == "b":
            hangs.wait(30)

    for _ in range(2):
        world.together.round(held, work)
    assert sorted(worked) == ["a", "a", "b"]
    # Also when it is alone, it has no second round.
    world.together.round(held[1:], work)
    assert sorted(worked) == ["a", "a", "b"]
    hangs.set()
    wait_until(lambda: not world.together._is_late("b"), timeout_s=30, what="it ends")
    world.together.round(held, work)
    assert sorted(worked) == ["a", "a", "a", "b", "b"]


def test_a_record_that_cannot_be_read_keeps_no_other_from_its_round() -> None:
    world = World(a=epoch(AT), b=epoch(AT), c=epoch(LATER))
    world.unreadable.add("b")
    held = [(each, 3) for each in world.records.values()]
    worked = list[str]()
    world.together.round(held, lambda record, *_: worked.append(record.name))
    assert sorted(worked) == ["a", "b", "c"]
    assert ("a", "other-moment") in world.told


def test_what_is_unmounted_waits_for_nobody() -> None:
    world = World(a=epoch(AT), b=epoch(AT))
    pausing: Any = None
    meeting = Meeting(pausing, "ab")
    world.together.moments.meeting_of = lambda *_: meeting  # type: ignore[method-assign]
    held = [(each, 3) for each in world.records.values()]
    hangs, landed = threading.Event(), threading.Event()

    def work(record: VolumeRecord, _: int, at: Meeting) -> None:
        if record.name == "b":
            hangs.wait(30)
            return
        assert at.is_due("a", is_changed=True)
        at.landing.begin("a", ["beta"])
        at.landing.come("a", "beta")
        landed.set()

    round_ = begun(lambda: world.together.round(held, work), name="round")
    wait_until(lambda: not meeting.is_first("a"), timeout_s=30, what="it waits")
    world.unmounted.add("a")
    world.together.let_go("a")
    assert landed.wait(5)
    hangs.set()
    round_.result(30)
    assert [name for name, kind in world.told if kind == "left-out"] == ["b"]


def epoch(moment: str, released_at: str = "") -> Epoch:
    base = Commit(2, 5)
    return Epoch(base, "own", before_released_at=released_at, moment=moment)


BOTH = [("a", "other-moment"), ("b", "other-moment")]


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        (epoch(AT), epoch(AT), []),
        (epoch(AT), epoch(LATER), BOTH),
        (epoch(AT), epoch(""), BOTH),
        (epoch(""), epoch(""), BOTH),
        (epoch(WRITTEN_HERE), epoch(WRITTEN_HERE), []),
        (epoch(WRITTEN_HERE), epoch(AT), BOTH),
        (epoch("", AT), epoch("", LATER), []),  # nobody wrote to them any more
        (Epoch(EMPTY, "own"), epoch(AT), []),
    ],
)
def test_two_moments_are_told_of_once(
    first: Epoch, second: Epoch, told: list[tuple[str, str]]
) -> None:
    world = World(a=first, b=second)
    assert world.round() == told
    assert world.round() == []


def test_a_copy_is_in_no_group_unless_it_is_told_so(tmp_path: Path) -> None:
    registry = Registry([RsyncBackend(tmp_path / "pool", pool_id=None)])
    resolver = OptionResolver(registry, {})
    source = VolumeRecord(
        id="a",
        name="a",
        backend="rsync",
        requested={},
        options={"group": "g", "interval": "3s"},
        created_at="",
        phase="ready",
    )
    copied = resolver.resolve({}, source).options
    assert copied == {"interval": "3s"}
    told = resolver.resolve({"group": "g"}, source).options
    assert told == {"group": "g", "interval": "3s"}
