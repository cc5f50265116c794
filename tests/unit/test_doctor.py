"""`remora doctor`'s checks, on machines that are and are not fit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backends.errors import BackendError
from plugin.cli import doctor
from plugin.cli.doctor import examine
from plugin.cli.doctor_engine import SeenByEngine
from plugin.cli.finding import Finding
from plugin.config import Config, load
from plugin.errors import DaemonUnreachableError
from tests.protocol.node import Node, running

pytestmark = pytest.mark.xdist_group("unit-doctor")
Findings = dict[str, Finding]
MACHINE = ["privileges", "kernel", "mount table", "jail"]
LIMIT = "/proc/sys/user/max_pid_namespaces"
NODE = ["control socket", "plugin socket", "doors", "pool", "mounts"]


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with running() as found:
        yield found


@pytest.fixture
def stranger() -> Iterator[Node]:
    """Return a node whose daemon has never run."""
    with running() as found:
        found.stop()
        subprocess.run(["rm", "-r", found.state_dir], check=True)
        yield found


def by_check(found: list[Finding]) -> Findings:
    assert len({each.check for each in found}) == len(found)
    return {each.check: each for each in found}


def examined(
    node: Node,
    volumes: Callable[[], list[dict[str, Any]]] = list,
    storages: Mapping[str, dict[str, Any]] | None = None,
) -> Findings:
    config = load(node.config, {})
    return by_check(
        examine(config, node.config, volumes, lambda: told_status(storages), list)
    )


def told_status(
    storages: Mapping[str, dict[str, Any]] | None = None, *left_over: str
) -> dict[str, Any]:
    """Return what a daemon answers to `remora status`, as far as it is looked at."""
    return {"storages": dict(storages or {}), "left_over": [*left_over]}


def test_volumes_that_are_not_what_they_seem(node: Node) -> None:
    rows = [
        {"name": name, "id": name, "mountpoint": "", **more}
        for name, more in (
            ("db", {"warnings": ["9 copies are asked for"]}),
            ("rows", {}),
            ("half", {"phase": "creating"}),
        )
    ]
    found = examine(
        load(node.config, {}),
        node.config,
        lambda: rows,
        lambda: told_status(None, "half"),
        list,
        engine=lambda: SeenByEngine(["rows", "other"]),
    )
    warned = [each for each in found if each.check == "volume"]
    assert {each.verdict for each in warned} == {"warning"}
    evidence = [each.evidence for each in warned]
    assert evidence[0].startswith("'half' was not made to the end")
    assert "'local', for the name 'rows'" in evidence[1]
    assert evidence[2] == "'db': 9 copies are asked for"
    assert "remora rm half" in warned[0].hint


def test_the_cluster_is_told_where_there_is_one(node: Node) -> None:
    rows = [
        {"name": "alpha", "this_node": True, "alive": True},
        {"name": "beta", "this_node": False, "alive": True},
        {"name": "gamma", "this_node": False, "alive": False},
    ]
    for each in rows:
        each |= {"fault": "", "clock_warning": ""}
    alone = load(node.config, {})
    member = load(node.config, {"REMORA_ETCD": "http://127.0.0.1:1"})

    def found(config: Config) -> list[Finding]:
        findings = examine(config, node.config, list, told_status, lambda: rows)
        return [
            each for each in findings if each.check.startswith(("cluster", "clock"))
        ]

    assert found(alone) == []
    assert found(member) == [Finding("cluster", "ok", "3 nodes, 2 of them alive")]
    rows[0]["fault"] = "store-unavailable: etcd did not answer"
    rows[1]["clock_warning"] = rows[2]["clock_warning"] = "it is an hour ahead"
    assert [(each.check, each.verdict, each.evidence) for each in found(member)] == [
        ("cluster", "failed", "store-unavailable: etcd did not answer"),
        ("clock of beta", "warning", "it is an hour ahead"),
    ]


def told(node: Node, *guard: str) -> tuple[int, Findings]:
    """Return exit code and findings of `remora doctor`, run in the node."""
    done = subprocess.run(
        node.inside(*guard, *node.remora("doctor", "--json")),
        env=node.environment(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == b""
    return done.returncode, by_check(
        [Finding(**row) for row in json.loads(done.stdout)]
    )


def test_a_fit_machine_in_a_fixed_order(node: Node) -> None:
    code, findings = told(node)
    order = list(findings)
    assert order[:4] == MACHINE
    assert order[-5:] == NODE
    assert code == 0
    assert {each.verdict for each in findings.values()} <= {"ok", "warning"}
    for check in (*MACHINE, *NODE, "rsync"):
        assert findings[check].verdict == "ok", findings[check]
        assert findings[check].evidence.isprintable()
    assert "uid 0" in findings["privileges"].evidence
    assert str(node.pool) in findings["pool"].evidence
    for label, path in (
        ("control", node.control_socket),
        ("plugin", node.plugin_socket),
    ):
        assert findings[f"{label} socket"].evidence == f"{path} answers, mode 0600"


@pytest.mark.parametrize(
    ("release", "verdict"),
    [("5.11.22-generic", "failed"), ("5.12.0", "ok"), ("6.1.0-39-amd64", "ok")],
)
def test_a_kernel_that_is_too_old_is_told(
    monkeypatch: pytest.MonkeyPatch, release: str, verdict: str
) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release))
    found = next(doctor._kernel())
    assert (found.check, found.verdict) == ("kernel", verdict)
    assert release in found.evidence


@pytest.mark.parametrize(
    ("machine", "verdict", "told"),
    [
        ([], "ok", "with a filter of system calls"),
        # On such a processor the filter is not known, as in a kernel that has none.
        (["setarch", "i686"], "warning", "has no filter of system calls (i686)"),
        # A user's namespace has limits of its own: here nobody else is short of them.
        (
            ["unshare", "-Ur", "sh", "-c", f'echo 0 > {LIMIT}; exec "$@"', "sh"],
            "failed",
            "cannot be made: No space left on device (processes)",
        ),
    ],
)
def test_a_kernel_that_cannot_make_a_jail_is_told(
    machine: list[str], verdict: str, told: str
) -> None:
    code = (
        "from dataclasses import astuple; from plugin.cli import doctor; "
        "print(*astuple(next(doctor._jail())), sep=chr(10))"
    )
    done = subprocess.run(
        [*machine, sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert lines[:2] == ["jail", verdict]
    assert told in lines[2]


def test_programs_are_shown_with_their_version(node: Node) -> None:
    findings = examined(node)
    for name in ("rsync", "rm", "xfs_quota", "btrfs", "lsattr"):
        finding = findings[name]
        if finding.verdict == "ok":
            assert re.search(rf"/{name}: .*\d+\.\d+", finding.evidence), finding
        else:
            assert finding.hint.startswith("apt-get install ")


def test_a_mount_that_nothing_holds_is_a_warning(node: Node) -> None:
    volume_id = node.create("held")
    node.ok("Mount", Name="held", ID="a")
    code, findings = told(node)
    assert (code, findings["mounts"].evidence) == (0, "1 mounted, all held")
    stray = node.mount_dir / "stray"
    stray.mkdir()
    node.run("mount", "--bind", str(node.pool), str(stray))
    try:
        code, findings = told(node)
        assert code == 0
        assert findings["mounts"].verdict == "warning"
        assert findings["mounts"].evidence == "no reference holds stray"
        assert "remora repair" in findings["mounts"].hint
    finally:
        node.run("umount", str(stray))
        stray.rmdir()
        node.ok("Unmount", Name="held", ID="a")
        node.ok("Remove", Name="held")
    assert volume_id not in node.mounts()


def test_without_a_daemon_the_sockets_fail_and_the_rest_is_checked(
    stranger: Node,
) -> None:
    def volumes() -> list[dict[str, Any]]:
        raise DaemonUnreachableError("there is no daemon")

    findings = examined(stranger, volumes)
    for label in ("control", "plugin"):
        finding = findings[f"{label} socket"]
        assert (finding.verdict, finding.hint) == (
            "failed",
            "start the daemon: remora serve",
        )
        assert finding.evidence.endswith(" is not there")
    assert findings["pool"].verdict == "failed"
    assert findings["pool"].evidence == f"{stranger.pool} has no pool.json"
    assert findings["mounts"].verdict == "failed"
    assert findings["rsync"].verdict == "ok"
    code, findings = told(stranger)
    assert code == 1
    assert findings["mounts"].evidence.startswith("daemon-unreachable: ")


def test_dead_sockets_and_what_they_cost() -> None:
    with running() as node:
        node.kill()
        findings = examined(node)
        for label in ("control socket", "plugin socket"):
            assert findings[label].verdict == "failed"
            assert "Connection refused" in findings[label].evidence
            assert "15 s" in findings[label].hint
        assert findings["pool"].verdict == "ok"


def test_a_pool_whose_disk_is_not_mounted(node: Node) -> None:
    hidden = node.pool.with_name("hidden")
    node.pool.rename(hidden)
    try:
        for _ in range(2):
            finding = examined(node)["pool"]
            assert finding.verdict == "failed"
            assert "has no pool.json" in finding.evidence
            assert "mount its disk" in finding.hint
            # An empty directory in its place is no pool either.
            node.pool.mkdir(exist_ok=True)
    finally:
        node.pool.rmdir()
        hidden.rename(node.pool)


def test_a_pool_that_is_nearly_full_is_a_warning() -> None:
    with running(disk=True) as node:
        file = str(node.pool / "big")
        node.run("fallocate", "--length", "48MiB", file)
        code, findings = told(node)
        assert code == 0
        assert findings["pool"].verdict == "warning"
        assert findings["pool"].hint == "less than 5 % is free"
        assert "ext4" in findings["pool"].evidence
        # Its file is full of holes, which others can take the room of.
        advice = findings["pool file"].hint.partition(";")[0]
        subprocess.run(advice.split(), check=True, timeout=10)
        findings = told(node)[1]
        assert "pool file" not in findings
        # Alone no commits are made.
        assert "pool filesystem" not in findings
        member = told(node, "env", "REMORA_ETCD=http://127.0.0.1:1")[1]
        assert member["pool filesystem"].verdict == "warning"
        assert "remora pool make" in member["pool filesystem"].hint


def test_a_process_that_may_not_mount(node: Node) -> None:
    guard = ["setpriv", "--bounding-set=-sys_admin,-sys_ptrace", "--"]
    code, findings = told(node, *guard)
    assert code == 1
    assert findings["privileges"].verdict == "failed"
    assert findings["privileges"].evidence == "without CAP_SYS_ADMIN, CAP_SYS_PTRACE"


def test_a_program_that_is_missing(node: Node) -> None:
    """The node's own mounts hide rsync from it; the machine keeps it."""
    rsync = Path("/usr/bin/rsync")
    guard = ["unshare", "--mount", "sh", "-c"]
    hide = f'mount --bind /dev/null {rsync} && exec "$@"'
    code, findings = told(node, *guard, hide, "sh")
    assert code == 1
    assert findings["rsync"].verdict == "failed"
    assert findings["rsync"].evidence == "not installed"
    assert findings["rsync"].hint == "apt-get install rsync"
    assert rsync.is_file()


def test_a_check_that_breaks_does_not_hide_the_others(node: Node) -> None:
    def volumes() -> list[dict[str, Any]]:
        raise BackendError("no\nanswer")

    finding = examined(node, volumes)["mounts"]
    assert finding.verdict == "failed"
    assert finding.evidence == "backend-failed: no\\nanswer"


def test_people_see_a_line_for_each_check(node: Node) -> None:
    lines = node.run(
        "env",
        *(f"{k}={v}" for k, v in node.environment().items()),
        *node.remora("doctor"),
    ).splitlines()
    assert lines[0].startswith("ok       privileges      uid 0")
    assert lines[-1].split() == ["ok", "mounts", "0", "mounted,", "all", "held"]


@pytest.mark.parametrize(
    ("health", "total", "available", "verdict"),
    [
        ("ok", 1000, 500, "ok"),
        ("ok", 1000, 10, "warning"),
        ("ok", None, None, "warning"),
        ("NFS-UNREACHABLE: no answer", 1000, 500, "failed"),
    ],
)
def test_shares(
    node: Node, health: str, total: int | None, available: int | None, verdict: str
) -> None:
    share = {
        "backend": "nfs",
        "health": health,
        "total_bytes": total,
        "available_bytes": available,
    }
    finding = examined(node, storages={"nas:/export": share})["share"]
    assert finding.verdict == verdict
    assert finding.evidence.startswith("nas:/export")
    assert "share" not in examined(node, storages={"/pool": {"backend": "rsync"}})


@pytest.mark.parametrize(("setting", "verdict"), [("Y", "warning"), ("N", "ok")])
def test_delegated_directories(
    node: Node,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    verdict: str,
) -> None:
    """Another node's calls were seen to fail for 90 s after a node's power failed."""
    parameter = tmp_path / "directory_delegations"
    parameter.write_text(f"{setting}\n")
    monkeypatch.setattr("plugin.cli.doctor.DELEGATED_DIRECTORIES", parameter)
    share = {"backend": "nfs", "health": "stale", "total_bytes": 1}
    storages = {"nas:/export": {**share, "available_bytes": 1}}
    finding = examined(node, storages=storages)["NFS directories"]
    assert finding.verdict == verdict
    assert "NFS directories" not in examined(node)
    parameter.unlink()
    assert "NFS directories" not in examined(node, storages=storages)
