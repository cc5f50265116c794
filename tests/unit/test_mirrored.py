"""Mirrored records, against a model of all that may come to them, in any order."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from plugin.store.base import Delete, Event, Operation, Put, Record
from plugin.store.mirrored import MirroredRecords
from tests.support.memory_store import Memory, MemoryStore

KEYS = ("a", "b", "c")
STEPS = 60


class World:
    """A cluster whose every state is known, and a node that hears of it."""

    def __init__(self, path: Path, seed: int) -> None:
        self.chance = random.Random(seed)
        self.memory = Memory()
        self.path = path
        self.mirrored = MirroredRecords(path)
        # All changes; up to when a key's were learnt; the answers still on their way.
        self.events = self.memory.events
        self.learnt = dict.fromkeys(KEYS, 0)
        self.on_its_way: list[tuple[list[Operation], int, int]] = []
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
            ],
            [6, 4, 3, 1, 0.3],
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
        before = self.memory.revision
        revision = MemoryStore(self.memory).transact([], operations).revision
        # Deleting what is absent changes nothing; etcd's slots make it a revision.
        if revision == before:
            self.memory.revision = revision = before + 1
        if self.chance.random() < 0.6:
            self.on_its_way.append((operations, revision, self.mirrored.era))

    def answer(self) -> None:
        """An answer to a transaction of ours comes, not always the oldest."""
        if not self.on_its_way:
            return
        index = self.chance.randrange(len(self.on_its_way))
        operations, revision, era = self.on_its_way.pop(index)
        assert self.mirrored.learn(self.mirrored.written(operations, revision), era)
        for each in operations:
            self.learnt[each.key] = max(self.learnt[each.key], revision)

    def follow(self) -> None:
        """The watch tells the next changes; a revision is never divided."""
        ahead = [each for each in self.events if each.revision > self.mirrored.reached]
        if ahead:
            last = self.chance.choice(ahead).revision
            self.mirrored.follow([each for each in ahead if each.revision <= last])

    def ask(self) -> None:
        """A question's answer: all records as they are now, and what is not there."""
        revision = self.memory.revision
        events = [Event(each.key, each.mod_revision, each) for each in self.now()]
        there = {each.key for each in events}
        events += [Event(key, revision, None) for key in KEYS if key not in there]
        assert self.mirrored.learn(events, self.mirrored.era)
        self.learnt = dict.fromkeys(KEYS, revision)

    def read_everything(self) -> None:
        """Answers come while the records are under way."""
        asked_at = self.mirrored.newest
        records, revision = self.now(), self.memory.revision
        for _ in range(self.chance.randint(0, 3)):
            self.chance.choice([self.write, self.answer])()
        self.mirrored.replace(records, revision, cluster="it", asked_at=asked_at)

    def now(self) -> list[Record]:
        return self.memory.table.below("")

    def check(self) -> None:
        """For each key memory holds the newest change that the mirrored may know."""
        for key in KEYS:
            known = max(self.mirrored.reached, self.learnt[key])
            wanted = None
            for event in self.events:
                if event.key == key and event.revision <= known:
                    wanted = event.record
            record = self.mirrored.table.get(key)
            assert fact(record) == fact(wanted), key
        assert self.mirrored.newest >= self.mirrored.reached

    def end(self) -> None:
        """Everything comes; what is in memory is right, and so is the file."""
        while self.on_its_way:
            self.answer()
            self.check()
        MemoryStore(self.memory).transact([], [Put("last", b"")])
        self.mirrored.follow(
            [e for e in self.events if e.revision > self.mirrored.reached]
        )
        assert self.mirrored.table.below("") == self.now()
        self.mirrored.close()
        again = MirroredRecords(self.path)
        assert again.table.below("") == self.now()
        assert again.reached == self.mirrored.reached
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
    mirrored = MirroredRecords(tmp_path / "mirror.db")
    mirrored.replace([Record("a", b"", 5, 5)], 100, cluster="it", asked_at=0)
    era = mirrored.era
    answer = mirrored.written([Put("b", b"")], 105)
    back_at = 50 if cluster == "it" else 101
    mirrored.replace([], back_at, cluster=cluster, asked_at=mirrored.newest)
    assert not mirrored.learn(answer, era)
    assert mirrored.table.below("") == []
    assert (mirrored.reached, mirrored.newest) == (back_at, back_at)
    mirrored.close()
