"""
Checks of the machine: each with evidence, and a hint where something is wrong.

They run in the CLI's process, so that they also work while the daemon does not.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from backends.errors import RemoraError
from backends.nfs.mounting import DELEGATED_DIRECTORIES
from backends.registry import has_catalogue_on_storage
from backends.system import block_devices, files, mounts
from backends.system.jailed import EXIT_UNAVAILABLE
from backends.system.mountinfo import MountEntry
from backends.system.programs import in_jail
from backends.system.run import find_program, run
from plugin.cli.doctor_engine import (
    SeenByEngine,
    hidden_volumes,
    mapped_or_labelled,
    stopped_containers,
)
from plugin.cli.finding import Finding, Verdict
from plugin.config import Config, file_faults
from plugin.limits import LONG_DEADLINE_S
from plugin.membership.settings import secret_faults

_PROBE_TIMEOUT_S: Final = 5.0
_FREE_SHARE_LOW: Final = 0.05
_NAMED_MAX: Final = 10
# Program, the option that prints its version, its Debian package, and whether volumes
# need it at all.
_PROGRAMS: Final = (
    ("rsync", "--version", "rsync", True),
    ("rm", "--version", "coreutils", True),
    ("tar", "--version", "tar", False),
    ("setpriv", "--version", "util-linux", True),
    ("ssh", "-V", "openssh-client", False),
    ("ip", "-V", "iproute2", False),
    ("mount.nfs", "-V", "nfs-common", False),
    ("docker", "--version", "docker.io", False),
    ("xfs_quota", "-V", "xfsprogs", False),
    ("btrfs", "--version", "btrfs-progs", False),
    ("lsattr", "-V", "e2fsprogs", False),
    ("chattr", "-V", "e2fsprogs", False),
)
_VERSION: Final = re.compile(r"\d+\.\d+")
# Where commits are of one moment: of snapshots, or of a short pause.
_CLONING: Final = ("btrfs", "xfs")
# It says whether servers may delegate directories to this machine's NFS client.
# Capability numbers of capability.h.
_CAPABILITIES: Final = {"CAP_SYS_ADMIN": 21, "CAP_SYS_PTRACE": 19, "CAP_CHOWN": 0}
# mount_setattr(2): volumes are mounted with their restrictions from the first moment.
_KERNEL_MIN: Final = (5, 12)
# With the capabilities that programs in a jail have, only its filter stops this.
_OUT_OF_A_JAIL: Final = ("unshare", "--mount", "true")


def examine(
    config: Config,
    source: Path,
    volumes: Callable[[], list[dict[str, Any]]],
    status: Callable[[], dict[str, Any]],
    nodes: Callable[[], list[dict[str, Any]]],
    set_apart: Callable[[], list[dict[str, Any]]] = list,
    engine: Callable[[], SeenByEngine] = SeenByEngine,
) -> list[Finding]:
    """
    Return the findings of every check, in a fixed order.

    *source* is the file that *config* is from, if there is one. The functions ask the
    daemon for the answers of `remora ls`, `status`, `node ls` and `quarantine ls`;
    *engine* asks Docker.
    """
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "privileges": _privileges,
        "kernel": _kernel,
        "jail": _jail,
        "programs": _programs,
        "sockets": lambda: _sockets(config),
        "doors": lambda: _doors(config, source),
        "pool": lambda: _pool(config),
        "shares": lambda: _shares(status()["storages"]),
        "mounts": lambda: _mounts(config, volumes()),
        "engine": lambda: mapped_or_labelled(engine().info, config.profiles),
        "cluster": lambda: _cluster(nodes()) if config.cluster.etcd else iter(()),
        "set apart": lambda: _set_apart(set_apart()),
        "volumes": lambda: _volumes(volumes(), status()["left_over"], engine()),
        "containers": lambda: stopped_containers(
            engine(), starts=config.start_containers
        ),
    }
    findings: list[Finding] = []
    for name, check in checks.items():
        try:
            findings.extend(check())
        except (OSError, RemoraError) as error:
            findings.append(Finding(name, "failed", str(error)))
    return findings


def _privileges() -> Iterator[Finding]:
    status = Path("/proc/self/status").read_text("ascii")
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    lacking = [name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1]
    if lacking:
        yield Finding(
            "privileges", "failed", f"without {', '.join(lacking)}", "run it as root"
        )
    else:
        yield Finding("privileges", "ok", f"uid {os.geteuid()}, may mount")


def _kernel() -> Iterator[Finding]:
    release = os.uname().release
    known = {
        line.split()[-1]
        for line in Path("/proc/filesystems").read_text("ascii").splitlines()
    }
    quota = [name for name in ("xfs", "btrfs") if name in known]
    evidence = f"{release}; size limits possible on {', '.join(quota) or 'none'}"
    if tuple(map(int, re.findall(r"\d+", release)[:2])) < _KERNEL_MIN:
        oldest = ".".join(map(str, _KERNEL_MIN))
        yield Finding(
            "kernel", "failed", evidence, f"Linux {oldest} or newer is needed"
        )
    else:
        yield Finding("kernel", "ok", evidence)
    root = mounts.entry_covering(Path("/proc"))
    yield Finding("mount table", "ok", f"readable ({root.filesystem} at /proc)")


def _jail() -> Iterator[Finding]:
    """Make a jail, and try in it what its filter of system calls is to refuse."""
    done = run(in_jail(_OUT_OF_A_JAIL), deadline_s=10, allowed=range(256))
    if done.exit_status == EXIT_UNAVAILABLE:
        yield Finding(
            "jail",
            "failed",
            f"cannot be made: {done.errors.strip()}",
            "nothing is copied or sent without one: a kernel with namespaces (mounts, "
            "processes, networks), and the sysctl user.max_*_namespaces above 0",
        )
    elif done.exit_status == 0:
        yield Finding(
            "jail",
            "warning",
            f"has no filter of system calls ({os.uname().machine}): whoever takes over "
            "a program in it is root of the node",
            "a kernel with CONFIG_SECCOMP_FILTER, on x86-64 or arm64",
        )
    else:
        yield Finding("jail", "ok", "can be made, with a filter of system calls")


def _programs() -> Iterator[Finding]:
    for name, version, package, needed in _PROGRAMS:
        path = find_program(name)
        if path is None:
            verdict: Verdict = "failed" if needed else "warning"
            yield Finding(name, verdict, "not installed", f"apt-get install {package}")
            continue
        shown = run([name, version], deadline_s=10, allowed=range(256))
        lines = (shown.errors + shown.output).splitlines()
        told = next((each for each in lines if _VERSION.search(each)), "no version")
        yield Finding(name, "ok", f"{path}: {told}"[:100])


def _sockets(config: Config) -> Iterator[Finding]:
    for label, path in (
        ("control socket", config.control_socket),
        ("plugin socket", config.plugin_socket),
    ):
        if not path.is_socket():
            yield Finding(
                label,
                "failed",
                f"{path} is not there",
                "start the daemon: remora serve",
            )
            continue
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_PROBE_TIMEOUT_S)
            try:
                probe.connect(str(path))
            except OSError as error:
                yield Finding(
                    label,
                    "failed",
                    f"{path}: {error.strerror or error}",
                    "a dead socket delays docker by 15 s: restart the daemon or rm it",
                )
            else:
                yield _door_of(label, path)


def _door_of(label: str, path: Path) -> Finding:
    """Tell of a socket that answers whether root alone may speak to it."""
    found = path.stat()
    mode = found.st_mode & 0o777
    evidence = f"{path} answers, mode {mode:04o}"
    if found.st_uid == 0 and not mode & 0o077:
        return Finding(label, "ok", evidence)
    return Finding(
        label,
        "failed",
        f"{evidence}, of user {found.st_uid}",
        "whoever may write to it can be root: chown root, chmod 600 (SocketMode=)",
    )


def _doors(config: Config, source: Path) -> Iterator[Finding]:
    """Tell who else could put something in the place of what is root's alone."""
    guarded = {config.state_dir, config.mount_dir, config.pool}
    guarded |= {config.plugin_socket.parent, config.control_socket.parent}
    guarded |= {source.absolute().parent, source.resolve().parent}
    faults = dict.fromkeys(
        fault
        for each in sorted(guarded)
        if each.exists() and (fault := files.way_fault(each))
    )
    for fault in faults:
        yield Finding("doors", "failed", fault, "chown root, chmod go-w")
    of_files = [*file_faults(source), *secret_faults(config.cluster)]
    for fault in of_files:
        yield Finding("doors", "failed", fault)
    if not faults and not of_files:
        yield Finding("doors", "ok", "only root changes what leads to data and sockets")


def _pool(config: Config) -> Iterator[Finding]:
    if not (config.pool / "pool.json").is_file():
        yield Finding(
            "pool",
            "failed",
            f"{config.pool} has no pool.json",
            "mount its disk; a new node makes it at the daemon's first start",
        )
        return
    total, available = files.free_bytes(config.pool)
    mount = mounts.entry_covering(config.pool)
    evidence = (
        f"{config.pool} on {mount.filesystem} at {mount.mount_point}, "
        f"{available // 2**20} MiB of {total // 2**20} MiB free"
    )
    if available < total * _FREE_SHARE_LOW:
        yield Finding("pool", "warning", evidence, "less than 5 % is free")
    else:
        yield Finding("pool", "ok", evidence)
    if config.cluster.etcd and mount.filesystem not in _CLONING:
        yield Finding(
            "pool filesystem",
            "warning",
            f"{mount.filesystem}: copies of what containers write to are not of one "
            "moment, and a busy database may not start from them",
            "remora pool make makes one on XFS or btrfs; see docs/guides/install.md",
        )
    yield from _pool_file(mount)


def _pool_file(mount: MountEntry) -> Iterator[Finding]:
    """Warn of a pool in a file that others can take the room of."""
    for source in block_devices.sources_of(mount):
        if source.is_file():
            found = source.stat()
            missing = found.st_size - found.st_blocks * 512
            if missing > 0:
                yield Finding(
                    "pool file",
                    "warning",
                    f"{source} has holes of {missing // 2**20} MiB: its disk can be "
                    "full before the pool is",
                    f"fallocate --length {found.st_size} {source}; do not fstrim it",
                )


def _shares(storages: dict[str, dict[str, Any]]) -> Iterator[Finding]:
    """Tell what the daemon has seen of each share; a dead one is not asked again."""
    shares = {
        name: facts
        for name, facts in storages.items()
        if has_catalogue_on_storage(facts["backend"])
    }
    for name, facts in shares.items():
        total, available = facts["total_bytes"], facts["available_bytes"]
        if facts["health"] != "ok":
            yield Finding("share", "failed", f"{name}: {facts['health']}")
        elif total is None or available is None:
            yield Finding("share", "warning", f"{name} was not read yet")
        else:
            evidence = f"{name}: {available // 2**20} MiB of {total // 2**20} MiB free"
            low = available < total * _FREE_SHARE_LOW
            hint = "less than 5 % is free" if low else ""
            yield Finding("share", "warning" if low else "ok", evidence, hint)
    if shares:
        yield from _delegations()


def _delegations() -> Iterator[Finding]:
    """Warn of delegated directories: the daemon turns them off where it can."""
    try:
        setting = DELEGATED_DIRECTORIES.read_text("ascii").strip()
    except FileNotFoundError:
        return  # an older kernel, or one that has not mounted anything yet
    if setting == "Y":
        yield Finding(
            "NFS directories",
            "warning",
            "are delegated to this node: it may miss that another node moved one, and "
            "if it dies, others can change nothing in them for 90 s",
            "options nfsv4 directory_delegations=N in /etc/modprobe.d/nfs.conf",
        )
    else:
        yield Finding("NFS directories", "ok", "are not delegated to this node")


def _mounts(config: Config, rows: list[dict[str, Any]]) -> Iterator[Finding]:
    """Compare mount points with what the daemon says it holds."""
    held = {each["id"] for each in rows if each["mountpoint"]}
    present = {each.name for each in mounts.mount_points_below(config.mount_dir)}
    stale = present - held
    if stale:
        yield Finding(
            "mounts",
            "warning",
            f"no reference holds {', '.join(sorted(stale)[:5])}",
            f"the daemon unmounts what is unused within {LONG_DEADLINE_S:.0f} s; "
            "else: remora repair",
        )
    else:
        yield Finding("mounts", "ok", f"{len(present)} mounted, all held")


def _cluster(nodes: list[dict[str, Any]]) -> Iterator[Finding]:
    """Tell whether this node is a member, and whose clock is wrong."""
    alive = sum(each["alive"] for each in nodes)
    fault = "".join(each["fault"] for each in nodes if each["this_node"])
    if fault:
        yield Finding("cluster", "failed", fault)
    else:
        yield Finding("cluster", "ok", f"{len(nodes)} nodes, {alive} of them alive")
    for each in nodes:
        if each["alive"] and each["clock_warning"]:
            yield Finding(
                f"clock of {each['name']}",
                "warning",
                each["clock_warning"],
                "let the clocks of all nodes follow one source, such as NTP",
            )


def _set_apart(rows: list[dict[str, Any]]) -> Iterator[Finding]:
    """Tell of bytes that no other copy has, which only people delete."""
    for each in rows[:_NAMED_MAX]:
        yield Finding(
            "set apart",
            "warning",
            f"commit {each['commit']} of '{each['volume']}' on node '{each['node']}'",
            "remora quarantine ls; see docs/guides/replication.md",
        )


def _volumes(
    rows: list[dict[str, Any]], left_over: list[str], seen: SeenByEngine
) -> Iterator[Finding]:
    """Tell of volumes that are not what their users may take them for."""
    for name in left_over[:_NAMED_MAX]:
        yield Finding(
            "volume",
            "warning",
            f"'{name}' was not made to the end, and could not be undone yet",
            f"the daemon's log says why; remora rm {name}",
        )
    yield from hidden_volumes((each["name"] for each in rows), seen)
    warned = [
        (each["name"], line) for each in rows for line in each.get("warnings", ())
    ]
    for name, line in warned[:_NAMED_MAX]:
        yield Finding("volume", "warning", f"'{name}': {line}")
