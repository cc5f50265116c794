"""The replica's rule, against a model of all that may come to it and in which order."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from plugin.store.base import CompactedError, Delete, Event, Operation, Put, Record
from plugin.store.history import HistoryWatch
from plugin.store.memory import Memory, MemoryStore
from plugin.store.mirrored import Replica

KEYS = ("a", "b", "c")
STEPS = 60


class World:
    """A cluster whose every state is known, and a replica that hears of it."""

    def __init__(self, path: Path, seed: int) -> None:
        self.chance = random.Random(seed)
        self.memory = Memory()
        self.path = path
        self.replica = Replica(path)
        # All changes; up to when a key's were learnt; the answers still on their way.
        self.events: list[Event] = []
        self.learnt = dict.fromkeys(KEYS, 0)
        self.on_its_way: list[tuple[list[Operation], int, int]] = []
        self.copies: list[tuple[HistoryWatch, dict[str, Record], list[int]]] = []
        self.write()
        self.read_everything()

    def step(self) -> None:
        act = self.chance.choices(
            [
                self.write,
                self.answer,
                self.follow,
                self.ask,
                self.read_everything,
                self.watch,
                self.look,
            ],
            [6, 4, 3, 1, 0.3, 1, 2],
        )[0]
        act()
        self.check()

    def write(self) -> None:
        """Somebody writes; if it was us, the answer comes some time later."""
        keys = self.chance.sample(KEYS, self.chance.randint(1, 2))
        operations = [
            Delete(key)
            if self.chance.random() < 0.4
            else Put(key, self.chance.randbytes(4))
            for key in keys
        ]
        before = self.memory.history.last
        revision = MemoryStore(self.memory).transact([], operations).revision
        self.events += self.memory.history.since(before, "")
        # Deleting what is absent changes nothing; etcd's slots make it a revision.
        if revision == before:
            self.memory.history.last = revision = before + 1
        if self.chance.random() < 0.6:
            self.on_its_way.append((operations, revision, self.replica.era))

    def answer(self) -> None:
        """An answer to a transaction of ours comes, not always the oldest."""
        if not self.on_its_way:
            return
        index = self.chance.randrange(len(self.on_its_way))
        operations, revision, era = self.on_its_way.pop(index)
        assert self.replica.learn(self.replica.written(operations, revision), era)
        for each in operations:
            self.learnt[each.key] = max(self.learnt[each.key], revision)

    def follow(self) -> None:
        """The watch tells the next changes; a revision is never divided."""
        ahead = [each for each in self.events if each.revision > self.replica.reached]
        if ahead:
            last = self.chance.choice(ahead).revision
            self.replica.follow([each for each in ahead if each.revision <= last])

    def ask(self) -> None:
        """A question's answer: all records as they are now, and what is not there."""
        revision = self.memory.history.last
        events = [Event(each.key, each.mod_revision, each) for each in self.now()]
        there = {each.key for each in events}
        events += [Event(key, revision, None) for key in KEYS if key not in there]
        assert self.replica.learn(events, self.replica.era)
        self.learnt = dict.fromkeys(KEYS, revision)

    def read_everything(self) -> None:
        """Answers come while the records are under way."""
        asked_at = self.replica.newest
        records, revision = self.now(), self.memory.history.last
        for _ in range(self.chance.randint(0, 3)):
            self.chance.choice([self.write, self.answer])()
        self.replica.replace(records, revision, cluster="it", asked_at=asked_at)

    def watch(self) -> None:
        """Somebody reads the records and watches from there."""
        reached = self.replica.reached
        watch = HistoryWatch(self.replica.history, "", reached, lambda: float("inf"))
        copy = {each.key: each for each in self.replica.table.below("")}
        self.copies.append((watch, copy, [reached]))

    def look(self) -> None:
        for each in list(self.copies):
            watch, copy, revisions = each
            try:
                events = watch.next(0)
            except CompactedError:
                self.copies.remove(each)
                continue
            for event in events:
                assert event.revision >= revisions[-1]
                revisions.append(event.revision)
                copy.pop(event.key, None)
                if event.record is not None:
                    copy[event.key] = event.record

    def now(self) -> list[Record]:
        return self.memory.table.below("")

    def check(self) -> None:
        """For each key memory holds the newest change that the replica may know."""
        for key in KEYS:
            known = max(self.replica.reached, self.learnt[key])
            wanted = None
            for event in self.events:
                if event.key == key and event.revision <= known:
                    wanted = event.record
            record = self.replica.table.get(key)
            assert fact(record) == fact(wanted), key
        assert self.replica.newest >= self.replica.reached

    def end(self) -> None:
        """Everything comes; all copies are right, and so is the file."""
        while self.on_its_way:
            self.answer()
            self.check()
        last = MemoryStore(self.memory).transact([], [Put("last", b"")]).revision
        self.events += self.memory.history.since(last - 1, "")
        self.replica.follow(
            [e for e in self.events if e.revision > self.replica.reached]
        )
        assert self.replica.table.below("") == self.now()
        self.look()
        for _, copy, _ in self.copies:
            assert sorted(copy.values(), key=lambda each: each.key) == self.now()
        self.replica.close()
        again = Replica(self.path)
        assert again.table.below("") == self.now()
        assert again.reached == self.replica.reached
        again.close()


def fact(record: Record | None) -> tuple[bytes, int] | None:
    """Return what must be right at once; when a key was made, the watch corrects."""
    return None if record is None else (record.value, record.mod_revision)


@pytest.mark.parametrize("seed", range(100))
def test_whatever_comes_in_whatever_order(tmp_path: Path, seed: int) -> None:
    world = World(tmp_path / "mirror.db", seed)
    for _ in range(STEPS):
        world.step()
    world.end()


@pytest.mark.parametrize("cluster", ["it", "another"])
def test_what_was_done_in_another_history_is_not_entered(
    tmp_path: Path, cluster: str
) -> None:
    replica = Replica(tmp_path / "mirror.db")
    replica.replace([Record("a", b"", 5, 5)], 100, cluster="it", asked_at=0)
    era = replica.era
    answer = replica.written([Put("b", b"")], 105)
    back_at = 50 if cluster == "it" else 101
    watch = HistoryWatch(replica.history, "", 100, lambda: float("inf"))
    replica.replace([], back_at, cluster=cluster, asked_at=replica.newest)
    assert not replica.learn(answer, era)
    assert replica.table.below("") == []
    assert (replica.reached, replica.newest) == (back_at, back_at)
    with pytest.raises(CompactedError):
        watch.next(0)
    replica.close()
