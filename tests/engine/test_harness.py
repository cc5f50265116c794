"""The harness itself: machines apart from each other that leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.engine import Engine
from tests.support.host import REPOSITORY, WORK_ROOT, Host, sweep_leftovers, wait_until

pytestmark = pytest.mark.xdist_group("engine-harness")

KILLED_RUN = """
import time
from tests.support.engine import started_engine
from tests.support.host import Host
host = Host()
engine = started_engine(host)
engine.docker("run", "-d", "--network", "none", "remora-test:1")
print(host.id, flush=True)
time.sleep(600)
"""


def test_hosts_have_files_mounts_and_processes_of_their_own() -> None:
    with Host("node-a") as first, Host("node-b") as second:
        first.run(
            ["sh", "-euc", "mkdir /var/lib/remora/x; echo a > /etc/remora/only-a"]
        )
        first.run(["mount", "--bind", "/var/lib/remora/x", "/var/lib/remora/x"])
        assert [entry.mount_point for entry in first.mounts()] == ["/var/lib/remora/x"]
        assert second.mounts() == []
        assert second.run(["ls", "/var/lib/remora", "/etc/remora"]).stdout.split() == [
            "/etc/remora:",
            "/var/lib/remora:",
        ]
        assert second.run(["hostname"]).stdout == "node-b\n"
        ours = Path("/proc/self/mountinfo").read_text()
        assert str(first.work) not in ours
        assert str(second.work) not in ours


def test_popen_gives_the_programs_own_pid() -> None:
    with Host() as host:
        process = host.popen(["sleep", "600"])
        comm = Path(f"/proc/{process.pid}/comm")
        wait_until(
            lambda: comm.read_text() == "sleep\n", timeout_s=5, what="sleep runs"
        )
        process.kill()
        assert process.wait(timeout=5) == -signal.SIGKILL
        host.forget(process)


def test_close_ends_everything_and_removes_the_work_directory() -> None:
    host = Host()
    started = host.popen(["sh", "-c", "sleep 600 & setsid sleep 600 & wait"])
    pid_namespace = _pid_namespace(host.pid)
    host.close()
    assert started.returncode == -signal.SIGKILL
    assert not host.work.exists()
    assert _members(pid_namespace) == []


def test_containers_survive_a_killed_dockerd() -> None:
    with Host() as host:
        engine = Engine(host)
        engine.start(live_restore=True)
        engine.load_busybox()
        engine.docker(
            "run", "-d", "--name", "held", "--network", "none", "remora-test:1"
        )
        pid = engine.inspect("container", "held")["State"]["Pid"]
        engine.kill()
        assert host.run(["cat", f"/proc/{pid}/comm"]).stdout == "sleep\n"
        engine.start_again()
        assert engine.inspect("container", "held")["State"]["Pid"] == pid
        assert engine.out("exec", "held", "echo", "alive") == "alive"


def test_a_killed_test_run_leaves_nothing() -> None:
    runner = subprocess.Popen(
        [sys.executable, "-c", KILLED_RUN],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    try:
        work = WORK_ROOT / runner.stdout.readline().decode().strip()
        holder = int(_holder_of(runner.pid))
        namespace = _pid_namespace(holder)
        assert len(_members(namespace)) > 3
    finally:
        runner.kill()
        runner.wait(timeout=10)
        runner.stdout.close()
    wait_until(lambda: not _members(namespace), timeout_s=10, what="processes end")
    sweep_leftovers()
    assert not work.exists()
    assert not [*Path("/sys/fs/cgroup").glob(f"*/*{work.name}")]


def _holder_of(pid: int) -> str:
    """Return process 1 of the host that the process *pid* made."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if Path(f"/proc/{child}/comm").read_text() == "unshare\n":
            return Path(f"/proc/{child}/task/{child}/children").read_text().split()[0]
    raise AssertionError("no holder")


def _pid_namespace(pid: int) -> str:
    return str(Path(f"/proc/{pid}/ns/pid").readlink())


def _members(pid_namespace: str) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str((process / "ns/pid").readlink()) == pid_namespace:
                found.append(process.name)
        except OSError:
            continue
    return found
