"""
Many nodes of one cluster on this machine, and what they take: real daemons, real etcd.

All is made in namespaces of its own, on a tmpfs in place of /tmp, so that nothing is
left of it, however it ends. Each pool is a small filesystem of its own: the kernel
tells a watcher of everything that happens on its filesystem.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from tests.protocol.node import REPOSITORY
from tests.support import etcd
from tests.support.owners import Owner
from tests.support.processes import descendants

from .mirrors import DEFAULTS
from .subjects import memory_mb

Result = TypeVar("Result")
PREFIX: Final = "/bench/"
ETCD_NICE: Final = -10
LAUNCHED_AT_ONCE: Final = 3
CALLED_AT_ONCE: Final = 8
GIVE_UP_S: Final = 1800.0
# As long as engines wait.
CALL_S: Final = 120.0
INSIDE: Final = "REMORA_BENCH_INSIDE"
# Whoever is the first process of a namespace has to wait for orphans; Python does not.
_FIRST: Final = '"$@"; exit $?'
_AGE: Final = re.compile(
    r'^remora_last_sync_age_seconds\{volume="([^"]+)"\} (\S+)$', re.MULTILINE
)
_SAMPLE: Final = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_METHOD: Final = re.compile(r'grpc_method="(\w+)"')


def run_apart(
    module: str, arguments: Sequence[str], *, own_network: bool = False
) -> int:
    """Return the exit code of *module*, run so that the kernel ends all of it."""
    command = [
        *("setpriv", "--pdeathsig", "KILL", "--"),
        *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *(("--net",) if own_network else ()),
        *("sh", "-c", _FIRST, "sh", sys.executable, "-m", module, *arguments),
    ]
    process = subprocess.Popen(
        command, env={**os.environ, INSIDE: "yes"}, cwd=REPOSITORY
    )
    try:
        return process.wait()
    finally:
        process.kill()
        process.wait()


@dataclass(frozen=True, slots=True)
class Place:
    """A volume, the node that has it mounted, and where its bytes are."""

    name: str
    id: str
    owner: Owner

    def live(self, node: Owner) -> Path:
        """Return the bytes of the copy of *node*."""
        return node.path(node.copy(self.id)) / "live"


@dataclass(frozen=True, slots=True)
class Used:
    """CPU seconds so far: of each daemon, with what it started, and of all."""

    daemons_s: Mapping[str, float]
    nodes_s: Mapping[str, float]
    etcd_s: float
    all_s: float


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, timeout=30)


def over_tmp(mount: Callable[[Path], object]) -> None:
    """Have *mount* put a filesystem over /tmp; this checkout stays where it is."""
    checkout = os.open(REPOSITORY, os.O_PATH)
    mount(Path("/tmp"))
    if not REPOSITORY.exists():  # it lies in the /tmp that is hidden now
        REPOSITORY.mkdir(parents=True)
        source = f"/proc/{os.getpid()}/fd/{checkout}"
        _mount("--no-canonicalize", "--bind", source, str(REPOSITORY))
    os.close(checkout)


class Fleet:
    """*count* nodes, started one after the other; it ends with its namespace."""

    def __init__(self, count: int, lease_ttl_s: float) -> None:
        over_tmp(lambda tmp: _mount("-t", "tmpfs", "-o", "size=8G", "tmpfs", str(tmp)))
        directory = Path("/tmp/etcd")
        directory.mkdir()
        self.server = etcd.single(directory).__enter__()
        # In life it has a machine of its own.
        etcd_pid = _pid(self.server.members[0].process)
        for thread in Path(f"/proc/{etcd_pid}/task").iterdir():
            os.setpriority(os.PRIO_PROCESS, int(thread.name), ETCD_NICE)
        self._lease_ttl_s = lease_ttl_s
        self.nodes: list[Owner] = []
        for first in range(0, count, LAUNCHED_AT_ONCE):
            batch = [
                self._node(number)
                for number in range(first, min(count, first + LAUNCHED_AT_ONCE))
            ]
            # From this thread: a daemon ends with the thread that has started it.
            for each in batch:
                each.launch()
            at_once(_started, batch)
            self.nodes += batch

    def _node(self, number: int) -> Owner:
        return Owner(
            f"node{number:02}",
            self.server,
            PREFIX,
            daemon={"disk": True},
            tuning={},
            lease_ttl_s=self._lease_ttl_s,
            mount_wait_s=DEFAULTS["mount_wait_s"],
        )

    def create(self, count: int, **options: str) -> list[Place]:
        """Return *count* new volumes, as many on each node, all of them mounted."""

        def made(owner: Owner, numbers: Iterable[int]) -> list[Place]:
            places = []
            for number in numbers:
                name = f"volume{number:04}"
                _call(owner, "Create", Name=name, Opts=options)
                _call(owner, "Mount", Name=name, ID="one")
                known = owner.call("Get", {"Name": name}, timeout_s=CALL_S).json()
                places.append(Place(name, known["Volume"]["Status"]["id"], owner))
            return places

        step = len(self.nodes)
        parts = at_once(
            lambda node: made(node, range(self.nodes.index(node), count, step)),
            self.nodes,
        )
        return [place for part in parts for place in part]

    def etcd_counts(self) -> Counter[str]:
        """Return how often each of etcd's methods was called, and its own counters."""
        url = f"{self.server.endpoints[0]}/metrics"
        with urllib.request.urlopen(url, timeout=30) as answer:
            text = answer.read().decode()
        found: Counter[str] = Counter()
        for name, labels, value in _SAMPLE.findall(text):
            method = _METHOD.search(labels)
            key = method[1] if method else name
            if name == "grpc_server_handled_total" or not method:
                found[key] += int(float(value))
        return found

    def used(self) -> Used:
        """Return the CPU time that was used so far."""
        daemons, nodes = {}, {}
        for each in self.nodes:
            pid = pid_of(each)
            daemons[each.name] = _cpu_s(pid, with_children=False)
            tree = [pid, *descendants(pid)]
            nodes[each.name] = sum(_cpu_s(found) for found in tree)
        etcd_pid = _pid(self.server.members[0].process)
        every = [int(each.name) for each in Path("/proc").glob("[0-9]*")]
        every = [each for each in every if each != os.getpid()]
        return Used(
            daemons, nodes, _cpu_s(etcd_pid), sum(_cpu_s(each) for each in every)
        )

    def rss_mb(self) -> list[float]:
        """Return the resident memory of each daemon."""
        return [memory_mb(pid_of(each))[0] for each in self.nodes]

    def processes(self) -> tuple[Counter[str], Counter[str]]:
        """Return how many processes of each name there are, and their Pss in MB."""
        counts: Counter[str] = Counter()
        sizes: Counter[str] = Counter()
        for each in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, KeyError):
                size_mb = memory_mb(int(each.name))[1]
                name = (each / "comm").read_text().strip()
                counts[name] += 1
                sizes[name] += size_mb
        return counts, sizes

    def ages_s(self) -> dict[str, float]:
        """Return how long ago each volume was in step with its copies."""
        found: dict[str, float] = {}
        for text in at_once(_metrics, self.nodes):
            found |= {name: float(age) for name, age in _AGE.findall(text)}
        return found

    def log_lines(self) -> list[dict[str, Any]]:
        """Return what all daemons have logged."""
        return [line for each in self.nodes for line in each.log_lines()]


def at_once(work: Callable[[Owner], Result], items: Iterable[Owner]) -> list[Result]:
    """Return what *work* makes of each of *items*, some at a time."""
    with ThreadPoolExecutor(CALLED_AT_ONCE) as pool:
        return list(pool.map(work, items))


def wait(condition: Callable[[], object], what: str) -> None:
    """Return when *condition* holds, which may take long."""
    end_s = time.monotonic() + GIVE_UP_S
    while not condition():
        assert time.monotonic() < end_s, f"given up: {what}"
        time.sleep(0.5)


def pid_of(node: Owner) -> int:
    """Return the process of the node's daemon."""
    return _pid(node.process)


def _pid(process: subprocess.Popen[bytes] | None) -> int:
    assert process is not None
    return process.pid


def _started(node: Owner) -> None:
    node.wait_ready(CALL_S)
    node.wait_member()


def _call(node: Owner, operation: str, **body: object) -> None:
    """Have it done, tried again as engines' users do."""

    def done() -> bool:
        error = node.call(operation, body, timeout_s=CALL_S).error
        if error:
            print(f"{node.name}: {operation}: {error}", file=sys.stderr)
        return not error

    wait(done, f"{node.name} {operation} {body}")


def _metrics(node: Owner) -> str:
    return str(node.control("GET", "/metrics").body.decode())


def _cpu_s(pid: int, *, with_children: bool = True) -> float:
    """Return what a process has used, with its children that have ended; 0 if gone."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        ticks = sum(map(int, fields[11 : 15 if with_children else 13]))
        return ticks / os.sysconf("SC_CLK_TCK")
    return 0.0
