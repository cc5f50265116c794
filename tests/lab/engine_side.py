"""
One replicated volume as an engine uses it: mounted for a writer, unmounted after it.

The writer has a mount namespace of its own that shows the volume, as a container has:
so the guard can stop it.
"""

from __future__ import annotations

import contextlib
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Final

from tests.support.host import wait_until

from .cluster import Cluster, Member
from .commands import NodeProcess, text_of
from .history import OWNING, objects
from .replication_facts import Commit, Mark, Session, commit_of, read_writer

WRITER: Final = Path(__file__).resolve().parent / "writer.py"
WRITER_LOGS: Final = "/data/writers"
# The engine's own for a Mount is 120 s; here other volumes wait meanwhile.
CALL_TIMEOUT_S: Final = 45.0
READ_TIMEOUT_S: Final = 15.0
STARTED_S: Final = 60.0
ENDED_S: Final = 30.0
# What is left of a writer that another node has taken its volume from.
FENCED_S: Final = 60.0
LET_GO_S: Final = 150.0
RELEASED_S: Final = 30.0
RETRY_S: Final = 0.5
LOG_TAIL_BYTES: Final = 4000


def works(member: Member) -> bool:
    """Return whether the daemon of *member* can be spoken to."""
    return member.node.powered and member.daemon.running and not member.frozen


class Use:
    """A mount of a volume on *member*, and the writer in it."""

    def __init__(
        self, member: Member, session: Session, log: Path, process: NodeProcess
    ) -> None:
        self.member = member
        self.session = session
        self._log = log
        self._process = process
        self._log_read_to = member.remora.log.stat().st_size
        self._newest: Commit = (0, 0)

    @classmethod
    def begin(
        cls,
        member: Member,
        volume: str,
        number: int,
        mountpoint: str,
        *,
        tag: str,
        big_mib: int,
    ) -> Use:
        """Start the writer of session *number* in the volume that was mounted."""
        events = [e for e in member.events(volume) if e["event"] in OWNING]
        session = Session(
            number=number,
            volume=volume,
            node=member.node.name,
            epoch=int(events[-1]["epoch"]),
        )
        log = member.node.log_path(f"writer-{tag}-{number}")
        shown, program = f"/mnt/{volume}", shlex.quote(str(WRITER))
        script = (
            f"mkdir -p {shown}; mount --bind {mountpoint} {shown}; "
            f"exec /usr/bin/python3 -ISE {program} write {shown} {number} "
            f"{WRITER_LOGS}/{tag}-{number} {big_mib}"
        )
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", script]
        return cls(member, session, log, member.node.popen(argv, log=log))

    @property
    def volume(self) -> str:
        """Its name."""
        return self.session.volume

    @property
    def running(self) -> bool:
        """Whether the writer has not ended; a frozen one has not."""
        try:
            return self._process.poll() is None
        except ConnectionError:
            return False

    @property
    def committed(self) -> bool:
        """Whether a commit of its own epoch was seen."""
        marks = self.session.marks
        return any(each.commit[0] == self.session.epoch for each in marks)

    def wait_writing(self) -> None:
        """Return when the first record is acknowledged, or the writer has ended."""
        with contextlib.suppress(AssertionError):
            wait_until(
                lambda: '"acknowledged"' in text_of(self._log) or not self.running,
                timeout_s=STARTED_S,
                what="it writes",
            )

    def observe(self) -> None:
        """Note which commit the head names, now that some records are acknowledged."""
        if not works(self.member):
            return
        published = self._published()
        acknowledged = self._last_acknowledged()
        with contextlib.suppress(OSError, KeyError):
            head = facts(self.member, self.volume)
            if (head["epoch"], head["ownership"]) == (self.session.epoch, "owned"):
                mark = Mark(commit_of(head["commit"]), acknowledged)
                # A daemon whose etcd is silent tells the head as it was.
                if mark.commit >= published:
                    self.session.marks.append(mark)

    def _published(self) -> Commit:
        """Return the newest commit that the daemon's log says the head has had."""
        with self.member.remora.log.open("rb") as log:
            log.seek(self._log_read_to)
            lines, newline, _ = log.read().rpartition(b"\n")
        self._log_read_to += len(lines + newline)
        for each in objects(lines.decode(errors="replace")):
            if each.get("event") == "synced" and each.get("volume") == self.volume:
                self._newest = max(self._newest, commit_of(each["commit"]))
        return self._newest

    def end_orderly(self) -> bool:
        """End the writer, then unmount; return whether the volume was let go so."""
        self.observe()
        orderly = False
        # After a boot its number may be another process's.
        if self.running:
            with contextlib.suppress(subprocess.TimeoutExpired, ConnectionError):
                self._process.send_signal(signal.SIGTERM)
                orderly = self._process.wait(ENDED_S) == 0
        self.end()
        if orderly:
            self.session.released = self._released()
        return self.session.released is not None

    def end(self, patience_s: float = 0.0) -> None:
        """
        Unmount when the writer has ended, by itself or after *patience_s* by force.

        Raises:
            AssertionError: the daemon does not let it go.

        """
        if not self.member.node.powered:
            return
        deadline_s = time.monotonic() + patience_s
        while self.running and time.monotonic() < deadline_s:
            time.sleep(RETRY_S)
        if self.running:
            with contextlib.suppress(ConnectionError):
                self._process.kill()
                self._process.wait(ENDED_S)
        let_go(self.member, self.volume, self.session.number)

    def read(self) -> bool:
        """Fill the session from the writer's log; return whether it had begun."""
        return read_writer(self.session, text_of(self._log))

    def _released(self) -> tuple[int, int] | None:
        end_s = time.monotonic() + RELEASED_S
        while time.monotonic() < end_s:
            with contextlib.suppress(OSError, KeyError):
                head = facts(self.member, self.volume)
                if head["epoch"] == self.session.epoch and head["ownership"] == "idle":
                    return commit_of(head["commit"])
            time.sleep(RETRY_S)
        return None

    def _last_acknowledged(self) -> int:
        with self._log.open("rb") as log:
            log.seek(max(0, self._log.stat().st_size - LOG_TAIL_BYTES))
            tail = log.read().decode(errors="replace")
        seen = Session(number=0, volume="", node="", epoch=0)
        # Its first line may be cut; what it found is not asked for here.
        read_writer(seen, tail[tail.find("\n") :])
        return seen.acknowledged


def facts(member: Member, volume: str) -> dict[str, Any]:
    """
    Return the Status of *volume* as *member* tells it.

    Raises:
        OSError: it does not answer; KeyError: it does not know the volume.

    """
    answer = member.remora.call("Get", {"Name": volume}, timeout_s=READ_TIMEOUT_S)
    return dict(answer["Volume"]["Status"])


def mount(member: Member, volume: str, number: int) -> str:
    """Return the mount point, or "" if it is refused now."""
    body = {"Name": volume, "ID": str(number)}
    try:
        answer = member.remora.call("Mount", body, timeout_s=CALL_TIMEOUT_S)
    except OSError:
        return ""
    return str(answer.get("Mountpoint", ""))


def let_go(member: Member, volume: str, number: int) -> None:
    """Unmount what was mounted as *number*, perhaps; as often as it takes."""
    body = {"Name": volume, "ID": str(number)}
    answers: list[object] = []

    def gone() -> bool:
        try:
            answers.append(
                member.remora.call("Unmount", body, timeout_s=CALL_TIMEOUT_S)
            )
        except OSError as error:
            answers.append(error)
        return answers[-1] == {}

    wait_until(
        gone,
        timeout_s=LET_GO_S,
        what=f"{member.node.name} lets {volume} go",
        interval_s=RETRY_S,
        evidence=lambda: answers[-1],
    )


def wait_all_hold(cluster: Cluster, volume: str, node: str, timeout_s: float) -> None:
    """Return when each member of *volume* holds its newest commit, as *node* says."""
    seen: list[object] = []

    def done() -> bool:
        head = facts(cluster[node], volume)
        seen.append(head)
        held = len(head["holders"])
        return bool(head["replication"] == f"{held} of {held} copies")

    wait_until(
        done,
        timeout_s=timeout_s,
        what=f"all members hold {volume}",
        interval_s=RETRY_S,
        evidence=lambda: seen[-1],
    )
