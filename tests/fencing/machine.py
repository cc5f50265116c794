"""A daemon with its guard, volumes and containers on a host with a real engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from backends.system.mountinfo import parse_mountinfo
from tests.fencing.world import PROGRAM, Daemon, Volume, new_id
from tests.support.host import PYTHON_ENVIRONMENT

if TYPE_CHECKING:
    from tests.support.host import Host

STATE = "/var/lib/remora"
# The guard of a managed plugin has no control groups to write to.
WITHOUT_FREEZER = ["unshare", "--mount", "sh", "-euc"]
UNMOUNT_FREEZERS = 'umount -R /sys/fs/cgroup; exec "$0" "$@"'


def make_volume(host: Host) -> Volume:
    """Return a new volume, mounted in *host* as a daemon there would."""
    volume_id = new_id()
    live = f"{STATE}/pool/volumes/{volume_id}/live"
    target = f"{STATE}/mounts/{volume_id}"
    host.run(["mkdir", "-p", live, target])
    host.run(["mount", "--bind", live, target])
    table = Path(f"/proc/{host.pid}/mountinfo").read_text()
    [entry] = [each for each in parse_mountinfo(table) if each.mount_point == target]
    return Volume(volume_id, host.path(live), Path(target), entry.device, entry.root)


def start_daemon(host: Host, run_dir: str, *, freezer: bool = True) -> Daemon:
    """Return a daemon of *host*; without *freezer* its guard has none to use."""
    command = [sys.executable, str(PROGRAM), run_dir]
    if not freezer:
        command = [*WITHOUT_FREEZER, UNMOUNT_FREEZERS, *command]
    process = host.popen(
        command,
        env=PYTHON_ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        log=host.log_path("fencing"),
    )
    return Daemon(host.path(run_dir), process)
