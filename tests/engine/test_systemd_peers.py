"""
The channel between nodes within the limits that the unit sets, under a real systemd.

On a machine as many are: root is locked, and strangers are kept off with hosts.deny.
"""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support import booted
from tests.support.booted import BootedMachine
from tests.support.host import REPOSITORY
from tests.support.wheels import offline

if TYPE_CHECKING:
    from collections.abc import Iterator

# One machine for the module.
pytestmark = pytest.mark.xdist_group("booted")
# One node that asks and sends to itself, in place of the daemon.
PROGRAM = """
import os, pathlib, subprocess, time, uuid
from plugin.peers.authorization import Authorization
from plugin.peers.channel import Peers
from plugin.peers.keys import ensure_keys
from plugin.peers.peer import Peer
from plugin.peers.server import PeerServer, StagingPlace
from plugin.peers.sharing import SharedSsh
from plugin.peers.sshd import PeerSshd
from plugin.daemon.sockets import bind_socket

state, run = pathlib.Path("/var/lib/remora/peers"), pathlib.Path("/run/remora")
staging, source = state / "staging", state / "source"
for each in (staging, source):
    each.mkdir(parents=True)
keys = ensure_keys(state / "peer")
peer = Peer(id=str(uuid.uuid4()), name="self", addresses=("127.0.0.1",), port=7424,
            host_key=keys.public_host_key, public_key=keys.public_node_key)

class Receiver:
    def begin(self, node_id, **about):
        return StagingPlace(staging, source, state / "receiving")
    def end(self, node_id, **about):
        pass

Authorization(state / "peer", peer_socket=run / "peer.sock").write([peer])
server = PeerServer(bind_socket(run / "peer.sock"), receiver=Receiver(),
                    handlers={"hello": lambda node_id, body: {"you": node_id}})
server.set_members([peer.id])
server.start()
sshd = PeerSshd(state / "peer", run_directory=run)
sshd.start()
ssh = SharedSsh(state / "peer", sockets=run / "ssh")
peers = Peers(ssh)
peers.update([peer])
for _ in range(300):
    if not sshd.fault():
        break
    time.sleep(0.1)
assert not sshd.fault(), sshd.fault()
assert peers.call(peer.id, "hello", {}, deadline_s=20) == {"you": peer.id}
(source / "file").write_text("x")
os.chown(source / "file", 7, 8)
(source / "file").chmod(0o6755)
os.setxattr(source / "file", "trusted.x", b"y")
os.mknod(source / "device", 0o020600, os.makedev(1, 3))
os.link(source / "file", source / "hard")
volume = str(uuid.uuid4())
command = ssh.rsync_command(
    peer, "127.0.0.1", source=source, volume=volume, commit=(1, 1))
subprocess.run(command, input=b"file\\0device\\0hard\\0", check=True, timeout=60)
status = (staging / "hard").stat()
assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (7, 8, 0o6755)
assert os.getxattr(staging / "hard", "trusted.x") == b"y"
refused = subprocess.run(
    [*ssh.command(peer), "127.0.0.1", "id"], stdin=subprocess.DEVNULL)
assert refused.returncode == 3
peers.close()
sshd.stop()
server.stop()
print("the channel works")
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[BootedMachine]:
    if lacks := booted.missing():
        pytest.skip(f"needs {lacks}")
    with BootedMachine() as made:
        subprocess.run(
            [str(REPOSITORY / "packaging/install")],
            env={"PATH": "/usr/bin:/bin", "DESTDIR": str(made.root), **offline()},
            check=True,
            capture_output=True,
            timeout=300,
        )
        (made.root / "opt").mkdir()
        (made.root / "opt/program.py").write_text(PROGRAM)
        made.boot()
        yield made
        made.power_off()


def service_with_the_units_limits() -> str:
    """Return the text of a service like ours that runs `PROGRAM` once."""
    unit = (REPOSITORY / "systemd/remora.service").read_text()
    service = unit.partition("[Service]\n")[2].partition("[Install]")[0]
    kept = re.sub(
        r"^(Type|NotifyAccess|Exec\w+|Restart\w*)=.*\n", "", service, flags=re.MULTILINE
    )
    return (
        f"[Service]\nType=oneshot\n{kept}\n"
        "ExecStart=/usr/lib/remora/bin/python3 /opt/program.py\n"
    )


def test_the_channel_works_within_the_units_limits(machine: BootedMachine) -> None:
    text = service_with_the_units_limits()
    assert "NoNewPrivileges=yes" in text
    assert "SystemCallFilter=" in text
    machine.run(["usermod", "--lock", "root"])
    machine.run(["sh", "-c", "echo 'ALL: ALL' >> /etc/hosts.deny"])
    machine.run(
        ["sh", "-c", f"cat > /etc/systemd/system/peers.service <<'END'\n{text}\nEND"]
    )
    machine.run(["systemctl", "daemon-reload"])
    mounts = machine.out("cat", "/proc/mounts")
    done = machine.run(["systemctl", "start", "peers.service"], check=False)
    journal = machine.out("journalctl", "-u", "peers.service", "--no-pager", "-n", "60")
    assert done.returncode == 0, journal
    assert "the channel works" in journal
    # Nothing of it is left, neither mounts nor processes.
    assert machine.run(["pgrep", "-f", "sshd_config"], check=False).returncode
    assert machine.out("cat", "/proc/mounts") == mounts
