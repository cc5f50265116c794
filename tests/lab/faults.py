"""
What a campaign breaks, at random: one thing of each kind, then all of them again.

Each fault is a context, and is broken inside of it; the recorder notes when.
"""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Final

from .cluster import NAMES, Cluster
from .history import Recorder

HOUR_S: Final = 3600.0
FAULT_MIN_S: Final = 1.0
TWO_FAULTS_CHANCE: Final = 0.3


class Faults:
    """The faults of *kinds* in *cluster*; *booted* is told of nodes that come back."""

    def __init__(
        self,
        cluster: Cluster,
        recorder: Recorder,
        chance: random.Random,
        *,
        kinds: Sequence[str],
        longest_s: float,
        booted: Callable[[str], object],
    ) -> None:
        self.cluster = cluster
        self.kinds = kinds
        self._recorder = recorder
        self._chance = chance
        self._longest_s = longest_s
        self._booted = booted
        self._deck: list[str] = []
        # With members on nodes of their own, each is broken in a node's name.
        self._etcd_of = dict(zip(NAMES, cluster.etcd.members, strict=True))

    @property
    def all_seen(self) -> bool:
        """Whether something of each kind was broken, and mended."""
        faults = self._recorder.history.faults
        return {each.kind for each in faults if each.end_s} == {*self.kinds}

    def break_something(self) -> None:
        """Break one or two things for a while."""
        count = 2 if self._chance.random() < TWO_FAULTS_CHANCE else 1
        with contextlib.ExitStack() as stack:
            for name in self._chance.sample(NAMES, count):
                stack.enter_context(self.breaking(self.next_kind(), name))
            time.sleep(self._chance.uniform(FAULT_MIN_S, self._longest_s))

    def next_kind(self) -> str:
        """Return a kind of fault: all of them in random order, then all again."""
        if not self._deck:
            self._deck = sorted(self.kinds)
            self._chance.shuffle(self._deck)
        return self._deck.pop()

    @contextlib.contextmanager
    def breaking(self, kind: str, name: str) -> Iterator[None]:
        """Have *kind* of *name* broken inside of it."""
        start_s = self._recorder.began(kind, name)
        with self._context(kind, name):
            yield
        self._recorder.ended(kind, name, start_s)

    def _context(self, kind: str, name: str) -> AbstractContextManager[None]:
        return _CONTEXTS[kind](self, name)

    @contextlib.contextmanager
    def _power(self, name: str) -> Iterator[None]:
        self.cluster.lab[name].power_off()
        yield
        self.cluster.boot(name)
        self._booted(name)

    @contextlib.contextmanager
    def _cut(self, name: str) -> Iterator[None]:
        self.cluster.lab[name].cut()
        yield
        self.cluster.lab[name].heal()

    @contextlib.contextmanager
    def _separation(self, name: str) -> Iterator[None]:
        lab = self.cluster.lab
        other = self._chance.choice([each for each in NAMES if each != name])
        lab.separate(lab[name], lab[other])
        yield
        lab.heal()

    @contextlib.contextmanager
    def _cut_from_etcd(self, name: str) -> Iterator[None]:
        self.cluster.cut_from_etcd(name)
        yield
        self.cluster.end_filters(name)

    @contextlib.contextmanager
    def _cut_from_peers(self, name: str) -> Iterator[None]:
        self.cluster.cut_from_peers(name)
        yield
        self.cluster.end_filters(name)

    @contextlib.contextmanager
    def _etcd_freeze(self, name: str) -> Iterator[None]:
        self.cluster.etcd.freeze(self._etcd_of[name])
        yield
        self.cluster.etcd.thaw(self._etcd_of[name])

    @contextlib.contextmanager
    def _etcd_kill(self, name: str) -> Iterator[None]:
        self.cluster.etcd.kill(self._etcd_of[name])
        yield
        self.cluster.etcd.launch(self._etcd_of[name])

    @contextlib.contextmanager
    def _daemon_freeze(self, name: str) -> Iterator[None]:
        self.cluster.signal_daemon(name, signal.SIGSTOP)
        yield
        self.cluster.signal_daemon(name, signal.SIGCONT)

    @contextlib.contextmanager
    def _daemon_kill(self, name: str) -> Iterator[None]:
        self.cluster.kill_daemon(name)
        yield
        self.cluster.launch_daemon(name)

    @contextlib.contextmanager
    def _clock(self, name: str) -> Iterator[None]:
        self.cluster.set_clock(name, self._chance.choice([-HOUR_S, HOUR_S]))
        yield
        self.cluster.set_clock(name, 0)


_CONTEXTS: Final[
    Mapping[str, Callable[[Faults, str], AbstractContextManager[None]]]
] = {
    "power": Faults._power,
    "cut": Faults._cut,
    "separate": Faults._separation,
    "etcd-cut": Faults._cut_from_etcd,
    "peers-cut": Faults._cut_from_peers,
    "etcd-freeze": Faults._etcd_freeze,
    "etcd-kill": Faults._etcd_kill,
    "daemon-freeze": Faults._daemon_freeze,
    "daemon-kill": Faults._daemon_kill,
    "clock": Faults._clock,
}
KINDS: Final = tuple(_CONTEXTS)
