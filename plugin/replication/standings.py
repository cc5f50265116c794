"""
At which commit each member is: asked before every round, of all of them at once.

A node that gives no answer in time, though it may live, would cost the rounds of all
volumes as long. So it is asked again only once in a while, for one of them. Nothing
comes after a last sync: for that it is asked as soon as one question has had its time.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from backends.errors import RemoraError, one_line
from backends.system.clock import monotonic_s
from plugin.errors import PeerSilentError, PeerUnreachableError
from plugin.model import VolumeRecord
from plugin.ownership.state import Commit
from plugin.peers.channel import Peers
from plugin.replication.report import note

_DEADLINE_S: Final = 3.0
_REST_S: Final = 10.0
_REST_LAST_S: Final = 3.0


@dataclass(slots=True)
class Standing:
    """
    At which commit each node of ``commits`` is; ``faults`` says why others are not.

    The disks of those in ``lacking`` are too full for another one. Those in ``ahead``
    were sent files ahead of a commit: only who did that knew what changed meanwhile.
    Those in ``applying`` have their commit, and take the next one when it is in place.
    Of those in ``unheard`` nobody knows: they are not reached, or give no answer.
    """

    commits: dict[str, Commit] = field(default_factory=dict)
    ahead: set[str] = field(default_factory=set)
    lacking: dict[str, str] = field(default_factory=dict)
    applying: set[str] = field(default_factory=set)
    faults: dict[str, str] = field(default_factory=dict)
    unheard: set[str] = field(default_factory=set)

    def leave_out(self, record: VolumeRecord, commit: Commit) -> None:
        """
        Take those out that cannot take *commit* now.

        The faults say why they lack the room; those that apply another one stay noted.
        """
        self.applying = {e for e in self.applying if self.commits[e] != commit}
        for node_id in self.applying:
            del self.commits[node_id]
            self.lacking.pop(node_id, None)
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
        # When nodes were asked that have given no answer since.
        self._silent_at_s: dict[str, float] = {}

    def ask(
        self, record: VolumeRecord, node_ids: Sequence[str], *, last: bool = False
    ) -> Standing:
        """
        Return at which commit of the volume those of *node_ids* are that answer.

        *last*: it is for a last sync.
        """
        rest_s = _REST_LAST_S if last else _REST_S
        due = [each for each in node_ids if self._is_due(each, rest_s)]
        standing = Standing(unheard=set(node_ids).difference(due))
        for node_id in standing.unheard:
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
                if isinstance(answer, PeerUnreachableError):
                    standing.unheard.add(node_id)
            else:
                standing.commits[node_id] = Commit(*answer["commit"])
                # Earlier versions say nothing of these.
                if text := answer.get("lacking"):
                    standing.lacking[node_id] = one_line(str(text))
                if answer.get("ahead") is True:
                    standing.ahead.add(node_id)
                if answer.get("applying") is True:
                    standing.applying.add(node_id)
        return standing

    def _is_due(self, node_id: str, rest_s: float) -> bool:
        """Return whether to ask the node now; others then wait for what it says."""
        with self._lock:
            silent_at_s, now_s = self._silent_at_s.get(node_id), monotonic_s()
            if silent_at_s is None:
                return True
            if now_s < silent_at_s + rest_s:
                return False
            self._silent_at_s[node_id] = now_s
            return True

    def _note_rest(self, node_id: str, *, silent: bool) -> None:
        with self._lock:
            if silent:
                self._silent_at_s[node_id] = monotonic_s()
            else:
                self._silent_at_s.pop(node_id, None)
