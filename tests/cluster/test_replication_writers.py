"""
Writers on a replicated volume while daemons die, stand still and lose etcd.

The judge is that of the campaign on real kernels (`tests/lab/README.md`), which breaks
more; here a round takes seconds, and a failure prints the seed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.lab import writer
from tests.lab.replication_checker import violations
from tests.lab.replication_facts import (
    Copy,
    Facts,
    Head,
    Mark,
    Session,
    commit_of,
    read_writer,
)
from tests.protocol.node import wait_until
from tests.support import etcd
from tests.support.chance import seed
from tests.support.daemon import PROGRAM
from tests.support.link import Link
from tests.support.owners import WAIT_S, Owner, Records

Make = Callable[..., Owner]
NAME = "written"
NODES = ("alpha", "beta", "gamma")
ROUNDS, ROUNDS_LONG = int(os.environ.get("REMORA_CAMPAIGN_ROUNDS", "3")), 20
SCRIPT = (
    'mount --bind "$1" "$2" && exec /usr/bin/python3 -ISE "$3" write "$2" "$4" "$5"'
)
# A lease, what a failsafe has promised, and the rest.
TAKE_S = 40.0
FENCED_S = 40.0


class Run:
    """A volume that is written to on one of three nodes."""

    def __init__(self, nodes: dict[str, Owner], links: dict[str, Link]) -> None:
        self.nodes = nodes
        self.links = links
        self.frozen: set[str] = set()
        self.ended: list[tuple[Session, Path]] = []
        self.session: Session | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.count = 0

    @property
    def owner(self) -> Owner:
        assert self.session is not None
        return self.nodes[self.session.node]

    @property
    def log(self) -> Path:
        assert self.session is not None
        return self.owner.directory / f"session-{self.session.number}"

    @property
    def writing(self) -> bool:
        """Whether the last writer has not ended."""
        return self.process is not None and self.process.poll() is None

    def mount(self, name: str, timeout_s: float = WAIT_S) -> bool:
        """Mount on the node *name* and write; return whether it was possible."""
        owner = self.nodes[name]
        self.count += 1
        mount_id = str(self.count)
        end_s = time.monotonic() + timeout_s
        while error := owner.call("Mount", {"Name": NAME, "ID": mount_id}).error:
            if time.monotonic() > end_s:
                print(f"{name} could not have it: {error}")
                return False
            time.sleep(0.3)
        at = owner.get(NAME)["Mountpoint"]
        lines = [*owner.events("owned", NAME), *owner.events("regained", NAME)]
        self.session = Session(
            number=self.count,
            volume=NAME,
            node=name,
            epoch=max(int(each["epoch"]) for each in lines),
        )
        inside = owner.directory / "inside"
        inside.mkdir(exist_ok=True)
        arguments = [at, str(inside), writer.__file__, mount_id, str(self.log)]
        unshare = ["unshare", "--mount", "--propagation", "private", "--"]
        self.process = owner.popen([*unshare, "sh", "-c", SCRIPT, "sh", *arguments])
        wait_until(self._begun, "it writes", timeout_s=WAIT_S)
        print(f"{name} writes: session {self.count}, epoch {self.session.epoch}")
        return True

    def write(self, duration_s: float) -> None:
        """Let it write, and see what is committed."""
        end_s = time.monotonic() + duration_s
        while time.monotonic() < end_s:
            self.observe()
            time.sleep(0.3)

    def commit(self, count: int) -> None:
        """Let it write until so many commits were seen."""
        assert self.session is not None
        end_s = time.monotonic() + WAIT_S
        while len({each.commit for each in self.session.marks}) < count:
            assert time.monotonic() < end_s, "it is not committed"
            self.write(0.5)

    def observe(self) -> None:
        session = self.session
        if session is None or session.node in self.frozen or not self._begun():
            return
        seen = Session(number=0, volume="", node="", epoch=0)
        read_writer(seen, self.log.read_text())
        with suppress(OSError):
            head = self.owner.get(NAME)["Status"]
            if (head["epoch"], head["ownership"]) == (session.epoch, "owned"):
                mark = Mark(commit_of(head["commit"]), seen.acknowledged)
                session.marks.append(mark)

    def end(self, *, orderly: bool, patience_s: float = 0.0) -> None:
        """End the writer, at last by force, and unmount."""
        assert self.session is not None
        assert self.process is not None
        self.observe()
        if orderly:
            self.process.terminate()
            patience_s = FENCED_S
        with suppress(subprocess.TimeoutExpired):
            orderly = self.process.wait(patience_s) == 0 and orderly
        self.process.kill()
        self.process.wait()
        if patience_s:
            self.release(self.session, orderly=orderly)
        self.ended.append((self.session, self.log))
        self.session = None

    def release(self, session: Session, *, orderly: bool) -> None:
        owner = self.nodes[session.node]
        body = {"Name": NAME, "ID": str(session.number)}
        wait_until(
            lambda: not owner.call("Unmount", body).error,
            f"{session.node} lets it go",
            timeout_s=3 * WAIT_S,
        )
        if orderly:
            # Without etcd's answer it is let go later.
            owner.wait_known(NAME, epoch=session.epoch, ownership="idle")
            session.released = commit_of(owner.get(NAME)["Status"]["commit"])
        print(f"{session.node} has let it go: {session.released}")

    def take(self, name: str) -> None:
        """Have another node take the volume, whose writer may go on."""
        before, process, log = self.session, self.process, self.log
        assert before is not None
        assert process is not None
        self.session = None
        if not self.mount(name, TAKE_S):
            self.session, self.process = before, process
            return
        self.ended.append((before, log))
        self._left = (before, process)

    _left: tuple[Session, Any] | None = None

    def mend(self) -> None:
        """See that who lost the volume stops its writer, and lets it go."""
        if self.session is not None and not self.writing:
            # Somebody came and could not begin; what was begun before is over.
            self.end(orderly=False, patience_s=1)
        if self._left is not None:
            session, process = self._left
            self._left = None
            with suppress(subprocess.TimeoutExpired):
                process.wait(FENCED_S)
            process.kill()
            process.wait()
            self.release(session, orderly=False)

    def _begun(self) -> bool:
        return self.log.exists() and "acknowledged" in self.log.read_text()

    @contextmanager
    def broken(self, kind: str, name: str) -> Iterator[None]:
        """Break the daemon of *name*, or its way to etcd, for as long as wished."""
        node = self.nodes[name]
        if kind == "etcd":
            self.links[name].cut()
            yield
            self.links[name].mend()
            return
        self.frozen.add(name)
        if kind == "freeze":
            node.signal(signal.SIGSTOP)
            yield
            node.signal(signal.SIGCONT)
        else:
            node.kill()
            if kind == "crash" and self.session and self.session.node == name:
                self.end(orderly=False)
            yield
            node.start()
        self.frozen.discard(name)
        node.wait_member()


def judged(run: Run, records: Records, volume_id: str) -> Facts:
    """Return what is known, now that all is at rest and whole."""
    wait_until(
        lambda: (
            len(records.head(volume_id).holders) == len(records.head(volume_id).members)
        ),
        "all members have the last commit",
        timeout_s=3 * WAIT_S,
    )
    head = records.head(volume_id)
    names = {node.id: name for name, node in run.nodes.items()}
    holders = tuple(sorted(names[each] for each in head.holders))
    commit = (head.committed.epoch, head.committed.seq)
    facts = Facts(heads={NAME: Head(commit, holders)})
    for session, log in sorted(run.ended, key=lambda each: each[0].number):
        if read_writer(session, log.read_text()):
            facts.sessions.append(session)
    for name, node in run.nodes.items():
        facts.read_daemon(name, node.log.read_text(), [NAME])
        home = node.copy(volume_id)
        if home.exists():
            told = json.dumps(writer.look(str(home)))
            facts.copies.append(Copy.of(NAME, name, told))
    return facts


@pytest.fixture
def run(server: etcd.Cluster, make_owner: Make) -> Iterator[Run]:
    """Yield three nodes, each with its own way to etcd."""
    links = {name: Link(server) for name in NODES}
    nodes = {name: make_owner(name, link=links[name]) for name in NODES}
    yield Run(nodes, links)
    for link in links.values():
        link.close()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "rounds", [ROUNDS, pytest.param(ROUNDS_LONG, marks=pytest.mark.long)]
)
def test_writers_while_daemons_break(run: Run, records: Records, rounds: int) -> None:
    chance = random.Random(seed())
    members = ",".join(sorted(chance.sample(NODES, 2)))
    volume_id = run.nodes["alpha"].create(NAME, interval="1s", members=members)
    for each in run.nodes.values():
        each.wait_known(NAME)
    assert run.mount(chance.choice(NODES))
    # Without one it would only be refused elsewhere; the first is of the empty volume.
    run.commit(2)
    for _ in range(rounds):
        if run.session is None:
            assert run.mount(chance.choice(NODES))
        run.write(chance.uniform(0.5, 5))
        kind = chance.choice(["move", "etcd", "freeze", "kill", "crash"])
        owner = run.session.node
        print(f"{kind}: {owner}")
        if kind == "move":
            run.end(orderly=True)
            continue
        other = chance.choice([each for each in NODES if each != owner])
        with run.broken(kind, owner):
            run.write(chance.uniform(0, 2))
            if kind == "crash":
                run.mount(other, TAKE_S)
            elif chance.random() < 0.8:
                run.take(other)
            run.write(chance.uniform(0, 4))
        run.mend()
    if run.session is not None:
        run.end(orderly=True)
    assert run.mount(chance.choice(NODES))
    run.write(1)
    run.end(orderly=True)
    facts = judged(run, records, volume_id)
    found = violations(facts)
    for violation in found:
        print(f"{violation.rule}: {violation.evidence}")
    assert found == []


# What was written by a node that another one has taken the volume from is deleted.
FORGETFUL = """
import shutil
from backends.rsync.journal.journal import Journal
_keep_apart = Journal.keep_apart
def keep_apart(self, name):
    place = _keep_apart(self, name)
    shutil.rmtree(place)
    return place
Journal.keep_apart = keep_apart
"""
# A commit is sent whole, as far as the other side can tell, and lacks a file.
CARELESS = """
from backends.rsync.journal import packing
_write_delta = packing.write_delta
def write_delta(path, header, entries, deletions):
    kept = (each for each in entries if each.path != b"log-1")
    _write_delta(path, header, kept, deletions)
packing.write_delta = write_delta
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("bug", "rule"),
    [
        (FORGETFUL, "every_byte_is_somewhere"),
        (CARELESS, "failovers_lose_at_most_what_was_announced"),
    ],
    ids=["forgetful", "careless"],
)
def test_a_bug_in_the_daemons_is_caught(
    run: Run, records: Records, bug: str, rule: str
) -> None:
    """Beta takes over from alpha, which died with a tail of its own."""
    for node in run.nodes.values():
        node.kill()
        node.launch(command=[sys.executable, "-c", bug + PROGRAM, "serve"])
        node.wait_ready()
        node.wait_member()
    volume_id = run.nodes["alpha"].create(NAME, interval="1s", members="alpha,beta")
    for each in run.nodes.values():
        each.wait_known(NAME)
    assert run.mount("alpha")
    run.commit(4)
    with run.broken("freeze", "alpha"):
        run.write(1)
        run.take("beta")
    run.mend()
    run.write(1)
    run.end(orderly=True)
    found = {each.rule for each in violations(judged(run, records, volume_id))}
    assert rule in found
