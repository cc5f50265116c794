"""A replicated volume, and when its commits were at the member."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from plugin.errors import StoreError
from plugin.ownership.state import Commit
from tests.bench.mirrors import DEADLINE_S, LOOK_AGAIN_S
from tests.protocol.node import wait_until
from tests.support.owners import Owner, Records

from .pair import PREFIX, Pair

_LOOK_S: Final = 0.05
_LOOK_AT_AGE_S: Final = 0.25
# So many rounds find nothing new once a volume is settled. What changed within the last
# seconds before a sync is sent again by the next one.
_IDLE_ROUNDS: Final = 2
_AGE: Final = re.compile(
    r'^remora_last_sync_age_seconds\{volume="([^"]+)"\} (\S+)$', re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Sync:
    """A commit that the member has got: when, in what time, of files of what size."""

    commit: Commit
    ended_at_s: float
    took_s: float
    files_bytes: int


class Volume:
    """A volume of *pair*; what is in ``source`` when it is seeded comes to ``copy``."""

    def __init__(self, pair: Pair, name: str, **options: str) -> None:
        self._pair = pair
        self.name = name
        self.owner, self.member = pair.owner, pair.member
        self.id = self.owner.create(name, **{"members": "alpha,beta"} | options)
        self.member.wait_known(name)
        self.source = self.owner.copy(self.id) / "live"
        self.copy = self.member.copy(self.id) / "live"
        # When the store said for the first time that the member has a commit.
        self._there: list[tuple[float, Commit]] = []

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note meanwhile which commits come to the member."""
        stopping = threading.Event()
        thread = threading.Thread(target=self._watch, args=(stopping,))
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join()

    def _watch(self, stopping: threading.Event) -> None:
        with closing(Records(self._pair.etcd, PREFIX)) as records:
            while not stopping.wait(_LOOK_S):
                try:
                    head = records.heads.read(self.id).head
                except StoreError:
                    continue
                if head is None or not {*head.holders} - {self._pair.owner_id}:
                    continue
                if not self._there or self._there[-1][1] != head.committed:
                    self._there.append((time.time(), head.committed))

    def seed(self) -> float:
        """Return the seconds until all of it is at the member."""
        began_s = time.monotonic()
        self.owner.mount(self.name)
        self.wait_there()
        return time.monotonic() - began_s

    def wait_there(self) -> None:
        """Return when a commit of it is at the member."""
        end_s = time.monotonic() + DEADLINE_S
        while not self._there:
            assert time.monotonic() < end_s, self.owner.log_tail()
            time.sleep(LOOK_AGAIN_S)

    def syncs(self) -> list[Sync]:
        """
        Return all syncs so far that have reached the member.

        What took long went on beside its round, whose line in the log does not tell of
        its end; the store does.
        """
        found = []
        for line in self.owner.events("synced", self.name):
            commit = Commit(*map(int, line["commit"].split(".")))
            told_at_s = datetime.fromisoformat(line["time"]).timestamp()
            began_at_s = told_at_s - float(line["duration_ms"]) / 1000
            ended_at_s = told_at_s if line["copies"] else self._there_at(commit)
            if ended_at_s is not None:
                took_s = ended_at_s - began_at_s
                found.append(Sync(commit, ended_at_s, took_s, int(line["bytes"])))
        return found

    def _there_at(self, commit: Commit) -> float | None:
        return next((at_s for at_s, there in self._there if there >= commit), None)

    def settle(self) -> None:
        """Return when rounds find nothing new any more, and all is in its place."""
        end_s = time.monotonic() + DEADLINE_S
        while (self.copy.parent / "applying").exists():
            assert time.monotonic() < end_s, self.member.log_tail()
            time.sleep(LOOK_AGAIN_S)
        idle, last_age_s, known = 0, 0.0, len(self._there)
        while idle < _IDLE_ROUNDS:
            assert time.monotonic() < end_s, self.owner.log_tail()
            time.sleep(_LOOK_AT_AGE_S)
            age_s = self._age_s()
            if len(self._there) != known or self._is_carried():
                idle, known = 0, len(self._there)
            elif age_s < last_age_s:
                idle += 1
            last_age_s = age_s

    def _age_s(self) -> float:
        text = self.owner.control("GET", "/metrics").body.decode()
        return float(dict(_AGE.findall(text)).get(self.name, "inf"))

    def _is_carried(self) -> bool:
        return bool(self.owner.control_ok("GET", "/v1/status")["transfers"])

    def add_member(self, name: str) -> None:
        """Have a node become a member."""
        path = f"/v1/volumes/{self.name}/replicas"
        self.owner.control_ok("POST", path, {"node": name})

    def remove(self) -> None:
        """Unmount and remove it; return when its bytes are deleted on both nodes."""
        self.owner.unmount(self.name)
        self.owner.ok("Remove", Name=self.name)
        wait_until(
            lambda: not any(self._remains(each) for each in self._pair.nodes),
            f"{self.name} is deleted",
            timeout_s=DEADLINE_S,
        )
        self._pair.give_back()

    def _remains(self, node: Owner) -> bool:
        trash = node.pool / "trash"
        thrown = [*trash.iterdir()] if trash.exists() else []
        return node.copy(self.id).exists() or bool(thrown)
