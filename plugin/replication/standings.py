"""
At which commit each member is: asked before every round, of all of them at once.

A node that gives no answer in time, though it may live, would cost the rounds of all
volumes as long. So it is asked again only once in a while, for one of them.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from backends.errors import RemoraError, one_line
from backends.system.clock import monotonic_s
from plugin.errors import PeerSilentError
from plugin.model import VolumeRecord
from plugin.ownership.state import Commit
from plugin.peers.channel import Peers
from plugin.replication.report import note

_DEADLINE_S: Final = 3.0
_REST_S: Final = 10.0


@dataclass(slots=True)
class Standing:
    """
    At which commit each node of ``commits`` is; ``faults`` says why others are not.

    The disks of those in ``lacking`` are too full for another one. Those in ``ahead``
    were sent files ahead of a commit: only who did that knew what changed meanwhile.
    """

    commits: dict[str, Commit] = field(default_factory=dict)
    ahead: set[str] = field(default_factory=set)
    lacking: dict[str, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)

    def leave_out(self, record: VolumeRecord, commit: Commit) -> None:
        """Take those out that lack the room for *commit*; the faults say why."""
        for node_id, why in self.lacking.items():
            if self.commits[node_id] != commit:
                note(record, node_id, why)
                del self.commits[node_id]
                self.faults[node_id] = why


class Standings:
    """See the module's text; threads share it."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._lock = threading.Lock()
        self._rests_until_s: dict[str, float] = {}

    def ask(self, record: VolumeRecord, node_ids: Sequence[str]) -> Standing:
        """Return at which commit of the volume those of *node_ids* are that answer."""
        standing = Standing()
        due = [each for each in node_ids if self._is_due(each)]
        for node_id in set(node_ids).difference(due):
            standing.faults[node_id] = "the node has not answered lately"
        answers: Mapping[str, Mapping[str, object] | RemoraError]
        answers = self._peers.call_all(
            due, "stand", {"volume": record.id}, deadline_s=_DEADLINE_S
        )
        for node_id, answer in answers.items():
            self._note_rest(node_id, silent=isinstance(answer, PeerSilentError))
            if isinstance(answer, RemoraError):
                note(record, node_id, answer)
                standing.faults[node_id] = str(answer)
            else:
                standing.commits[node_id] = Commit(*answer["commit"])
                # Earlier versions say nothing of either.
                if text := answer.get("lacking"):
                    standing.lacking[node_id] = one_line(str(text))
                if answer.get("ahead") is True:
                    standing.ahead.add(node_id)
        return standing

    def _is_due(self, node_id: str) -> bool:
        """Return whether to ask the node now; others then wait for what it says."""
        with self._lock:
            until_s, now_s = self._rests_until_s.get(node_id), monotonic_s()
            if until_s is None:
                return True
            if now_s < until_s:
                return False
            self._rests_until_s[node_id] = now_s + _REST_S
            return True

    def _note_rest(self, node_id: str, *, silent: bool) -> None:
        with self._lock:
            if silent:
                self._rests_until_s[node_id] = monotonic_s() + _REST_S
            else:
                self._rests_until_s.pop(node_id, None)
