"""The judge of histories: valid ones pass, every planted bug is caught."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lab.history import (
    Attempt,
    Event,
    Fault,
    History,
    Recorder,
    codes,
    count_attempts,
)
from tests.lab.invariants import violations

NODES = ("alpha", "beta", "gamma")
TTL_S, MARGIN_S = 15.0, 4.0


@dataclass
class World:
    """A cluster that keeps to the protocol, for one volume; writes its history."""

    history: History = field(default_factory=History)
    now_s: float = 1000.0
    epoch: int = 0
    owner: str = ""
    # What each node's client has mounted: the mount ids, and whether owned by now.
    mounted: dict[str, list[str]] = field(
        default_factory=lambda: {n: [] for n in NODES}
    )
    boots: dict[str, int] = field(default_factory=lambda: dict.fromkeys(NODES, 1))
    number: int = 0

    def pass_time(self, seconds: float = 1.0) -> None:
        self.now_s += seconds

    def boot_of(self, node: str) -> str:
        return f"{node}-{self.boots[node]}"

    def event(self, kind: str, node: str) -> None:
        self.history.events.append(
            Event(
                kind=kind,
                node=node,
                boot=self.boot_of(node),
                volume="v",
                volume_id="id-v",
                epoch=self.epoch,
                at_s=self.now_s,
                deadline_s=self.now_s + TTL_S - MARGIN_S,
            )
        )

    def attempt(self, kind: str, node: str, mount_id: str, outcome: str) -> None:
        start_s = self.now_s - 0.5
        error = "not-owner: somebody else" if outcome == "error" else ""
        end_s = None if outcome == "unknown" else self.now_s + 0.1
        self.history.attempts.append(
            Attempt(
                kind=kind,
                node=node,
                boot=self.boot_of(node),
                volume="v",
                mount_id=mount_id,
                start_s=start_s,
                end_s=end_s,
                outcome=outcome,
                error=error,
            )
        )

    def mount(self, node: str) -> None:
        self.pass_time()
        self.number += 1
        mount_id = str(self.number)
        if self.owner not in {"", node}:
            self.attempt("mount", node, mount_id, "error")
            return
        if not self.owner:
            self.owner = node
            self.epoch += 1
            self.event("owned", node)
        self.attempt("mount", node, mount_id, "ok")
        self.mounted[node].append(mount_id)

    def unmount(self, node: str) -> None:
        self.pass_time()
        if not self.mounted[node]:
            return
        self.attempt("unmount", node, self.mounted[node].pop(), "ok")
        if self.owner == node and not self.mounted[node]:
            self.event("released", node)
            self.owner = ""

    def lose(self, node: str) -> None:
        """Let the lease of *node* end although its daemon runs: it was cut off."""
        self.pass_time(TTL_S)
        if self.owner == node:
            self.event("lost", node)
            self.owner = ""

    def regain(self, node: str) -> None:
        self.pass_time()
        if self.owner == node:
            self.event("lost", node)
            self.pass_time()
            self.event("regained", node)

    def fail_power(self, node: str) -> None:
        self.pass_time()
        self.history.faults.append(
            Fault(kind="power", node=node, start_s=self.now_s, end_s=self.now_s + 20)
        )
        self.pass_time(20)
        self.boots[node] += 1
        self.mounted[node].clear()
        if self.owner == node:
            self.owner = ""

    def freeze_daemon(self, node: str) -> None:
        """Stop the daemon for longer than its lease; it hears of it when it goes on."""
        self.pass_time()
        self.history.faults.append(
            Fault(
                kind="daemon-freeze",
                node=node,
                start_s=self.now_s,
                end_s=self.now_s + 20,
            )
        )
        self.pass_time(TTL_S)
        held = self.owner == node
        self.owner = "" if held else self.owner
        other = random.Random(self.number).choice([n for n in NODES if n != node])
        before = self.epoch
        self.mount(other)
        self.pass_time(20)
        if held:
            after, self.epoch = self.epoch, before
            self.event("lost", node)
            self.epoch = after


ACTIONS = ("mount", "unmount", "lose", "regain", "fail_power", "freeze_daemon")
STEPS = st.lists(
    st.tuples(st.sampled_from((*ACTIONS, "mount", "unmount")), st.sampled_from(NODES)),
    max_size=40,
)


def lived(steps: list[tuple[str, str]]) -> World:
    """Return a world in which *steps* have happened."""
    world = World()
    for action, node in steps:
        getattr(world, action)(node)
    return world


@given(STEPS)
def test_whatever_keeps_to_the_protocol_passes(steps: list[tuple[str, str]]) -> None:
    assert violations(lived(steps).history) == []


def story() -> World:
    """Return a world with something of everything."""
    return lived(
        [
            *(("mount", "alpha"), ("mount", "alpha"), ("mount", "beta")),
            *(("unmount", "alpha"), ("regain", "alpha"), ("unmount", "alpha")),
            *(("mount", "beta"), ("fail_power", "beta"), ("mount", "gamma")),
            *(("lose", "gamma"), ("mount", "alpha"), ("freeze_daemon", "alpha")),
        ]
    )


def rules(history: History) -> set[str]:
    return {each.rule for each in violations(history)}


def change(history: History, index: int, **values: object) -> None:
    """Change the event *index*."""
    history.events[index] = dataclasses.replace(history.events[index], **values)


def index_of(history: History, kind: str, node: str) -> int:
    return next(
        index
        for index, each in enumerate(history.events)
        if (each.kind, each.node) == (kind, node)
    )


def another_owns_the_epoch(history: History) -> None:
    event = history.events[index_of(history, "owned", "beta")]
    twin = dataclasses.replace(event, node="gamma", boot="gamma-1")
    history.events.append(twin)


def owned_twice_by_the_same(history: History) -> None:
    event = history.events[index_of(history, "owned", "beta")]
    history.events.append(dataclasses.replace(event, at_s=event.at_s + 0.1))


def regained_by_another(history: History) -> None:
    index = index_of(history, "regained", "alpha")
    change(history, index, node="beta", boot="beta-1")


def regained_after_a_reboot(history: History) -> None:
    change(history, index_of(history, "regained", "alpha"), boot="alpha-2")


def owned_past_the_deadline(history: History) -> None:
    index = index_of(history, "owned", "gamma")
    change(history, index, deadline_s=history.events[index].at_s)


def regained_without_a_deadline(history: History) -> None:
    change(history, index_of(history, "regained", "alpha"), deadline_s=None)


def an_epoch_goes_back_on_a_node(history: History) -> None:
    last = history.events[-1]
    deadline_s = last.at_s + 12
    history.events.append(
        dataclasses.replace(
            *(last,), kind="owned", epoch=0, at_s=last.at_s + 1, deadline_s=deadline_s
        )
    )


def an_epoch_goes_back_among_nodes(history: History) -> None:
    change(history, index_of(history, "owned", "gamma"), epoch=0)


def regained_after_another_owned_it(history: History) -> None:
    first = history.events[index_of(history, "regained", "alpha")]
    at_s = history.events[index_of(history, "owned", "gamma")].at_s + 5
    history.events.append(
        dataclasses.replace(first, at_s=at_s, deadline_s=at_s + TTL_S - MARGIN_S)
    )


def mounted_without_owning(history: History) -> None:
    del history.events[index_of(history, "owned", "beta")]


def mounted_after_the_loss(history: History) -> None:
    lost = history.events[index_of(history, "lost", "gamma")]
    history.attempts.append(
        Attempt(
            kind="mount",
            node="gamma",
            boot=lost.boot,
            volume="v",
            mount_id="late",
            start_s=lost.at_s + 0.2,
            end_s=lost.at_s + 0.3,
            outcome="ok",
        )
    )


def mounted_by_what_an_earlier_boot_owned(history: History) -> None:
    mount = next(each for each in history.mounts() if each.node == "beta")
    history.attempts.append(
        dataclasses.replace(
            *(mount,), boot="beta-2", start_s=mount.start_s + 22, mount_id="x"
        )
    )


def taken_from_one_who_is_well(history: History) -> None:
    index = index_of(history, "lost", "gamma")
    del history.events[index]


def taken_while_only_a_member_of_etcd_was_frozen(history: History) -> None:
    taken_from_one_who_is_well(history)
    lost_s = history.events[index_of(history, "owned", "gamma")].at_s
    history.faults.append(
        Fault(kind="etcd-freeze", node="gamma", start_s=lost_s, end_s=lost_s + 30)
    )


def the_loss_is_told_too_late(history: History) -> None:
    index = index_of(history, "lost", "gamma")
    change(history, index, at_s=history.events[index].at_s + 5)


def released_under_a_user(history: History) -> None:
    owned = history.events[index_of(history, "owned", "alpha")]
    released = dataclasses.replace(owned, kind="released", at_s=owned.at_s + 0.6)
    history.events.insert(1, released)


BUGS: dict[Callable[[History], None], str] = {
    another_owns_the_epoch: "an_epoch_has_one_owner",
    owned_twice_by_the_same: "an_epoch_has_one_owner",
    regained_by_another: "an_epoch_has_one_owner",
    regained_after_a_reboot: "an_epoch_has_one_owner",
    owned_past_the_deadline: "nothing_is_owned_past_the_deadline",
    regained_without_a_deadline: "nothing_is_owned_past_the_deadline",
    an_epoch_goes_back_on_a_node: "epochs_only_rise",
    an_epoch_goes_back_among_nodes: "epochs_only_rise",
    regained_after_another_owned_it: "epochs_only_rise",
    mounted_without_owning: "what_is_mounted_is_owned",
    mounted_after_the_loss: "what_is_mounted_is_owned",
    mounted_by_what_an_earlier_boot_owned: "what_is_mounted_is_owned",
    taken_from_one_who_is_well: "two_nodes_use_a_volume_only_after_a_loss",
    taken_while_only_a_member_of_etcd_was_frozen: (
        "two_nodes_use_a_volume_only_after_a_loss"
    ),
    the_loss_is_told_too_late: "two_nodes_use_a_volume_only_after_a_loss",
    released_under_a_user: "nothing_in_use_is_released",
}


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_planted_bug_is_caught(bug: Callable[[History], None]) -> None:
    history = story().history
    assert rules(history) == set()
    bug(history)
    assert BUGS[bug] in rules(history)


@given(STEPS, st.randoms(use_true_random=False))
def test_a_second_owner_is_caught_in_any_history(
    steps: list[tuple[str, str]], chance: random.Random
) -> None:
    history = lived([("mount", "alpha"), *steps]).history
    owned = [each for each in history.events if each.kind == "owned"]
    event = chance.choice(owned)
    node = chance.choice([each for each in NODES if each != event.node])
    twin = dataclasses.replace(event, node=node, boot=f"{node}-9")
    history.events.insert(chance.randrange(len(history.events) + 1), twin)
    assert "an_epoch_has_one_owner" in rules(history)


def test_an_answer_that_nobody_saw_is_not_held_against_anybody() -> None:
    world = story()
    world.history.attempts += [
        dataclasses.replace(each, end_s=None, outcome="unknown", node="gamma")
        for each in world.history.mounts()
    ]
    assert violations(world.history) == []


def test_logs_become_a_history() -> None:
    recorder = Recorder()
    recorder.boot("b1", uptime_s=5.0, before_s=105.0)
    owned = (
        '{"event": "owned", "volume": "v", "id": "i", "epoch": 3, "node": "alpha", '
        '"boot_id": "b1", "at_s": 6.0, "lease_deadline_s": 17.0}'
    )
    other = '{"event": "request", "op": "Mount"}'
    recorder.read_events("alpha", "\n".join([other, owned, "no", "1", owned[:30]]))
    start = {"boot_id": "b1", "volume": "v", "mount_id": "m", "kind": "mount"}
    lines = [
        {**start, "n": 1, "start_s": 6.0},
        {"boot_id": "b1", "n": 1, "end_s": 6.5, "outcome": "ok"},
        {**start, "n": 2, "start_s": 7.0},
        {"boot_id": "b1", "n": 2, "end_s": 7.5, "outcome": "error", "error": "a-b: c"},
        {**start, "n": 3, "start_s": 8.0},
    ]
    attempts = "\n".join(json.dumps(each) for each in lines)
    recorder.read_attempts("alpha", attempts)
    start_s = recorder.began("power", "alpha")
    recorder.ended("power", "alpha", start_s)
    history = recorder.history
    (event,) = history.events
    assert (event.at_s, event.deadline_s, event.epoch) == (106.0, 117.0, 3)
    assert [each.outcome for each in history.attempts] == ["ok", "error", "unknown"]
    assert history.attempts[0].end_s == 106.5
    assert history.attempts[2].end_s is None
    assert codes(history.attempts) == {"a-b": 1}
    assert count_attempts(attempts) == 3
    assert history.faults[0].end_s is not None
    with pytest.raises(AssertionError, match="boot b2"):
        recorder.read_attempts("beta", json.dumps({**start, "n": 1, "boot_id": "b2"}))
