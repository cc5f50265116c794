"""The peer channel within the capabilities that the service's unit leaves it."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.support.host import REPOSITORY
from tests.support.peers import require_programs

UNIT = REPOSITORY / "systemd/remora.service"
# Two nodes: a request, a transfer of what only root can make, a stranger refused.
PROGRAM = """
import os, logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
from tests.support.peers import PeerNode
nodes = first, second, thief = [PeerNode(name) for name in ("a", "b", "c")]
try:
    first.knows(second.record())
    second.knows(first.record())
    second.start()
    source = first.directory / "source"
    source.mkdir()
    (source / "file").write_text("x")
    os.chown(source / "file", 7, 8)
    (source / "file").chmod(0o6755)
    os.setxattr(source / "file", "trusted.x", b"y")
    os.mknod(source / "device", 0o020600, os.makedev(1, 3))
    assert thief.ssh_to(second, "remora", "control").returncode == 255
    first.peers.call(second.id, "hello", {}, deadline_s=20)
    done = first.send(second, source, ["file", "device"])
    assert done.returncode == 0, done.stderr
    status = (second.staging.directory / "file").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (7, 8, 0o6755)
    print("it works")
    first.ssh.close(second.record())
finally:
    for node in nodes:
        node.close()
"""


def unit_capabilities() -> set[str]:
    """Return the unit's bounding set, in setpriv's words."""
    lines = re.findall(r"^CapabilityBoundingSet=(.*)$", UNIT.read_text(), re.MULTILINE)
    return {
        each.removeprefix("CAP_").lower() for line in lines for each in line.split()
    }


def run_with(capabilities: set[str]) -> str:
    """Return what the program prints when it has *capabilities* and can get no more."""
    done = subprocess.run(
        [
            *("setpriv", "--no-new-privs", "--bounding-set"),
            ",".join(["-all", *(f"+{each}" for each in sorted(capabilities))]),
            *("--", sys.executable, "-c", PROGRAM),
        ],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout


def test_the_units_capabilities_are_enough() -> None:
    require_programs()
    output = run_with(unit_capabilities())
    assert "it works" in output, output
    assert "not permitted" not in output, output


@pytest.mark.parametrize(
    ("capability", "complaint"),
    [
        ("setuid", "setresuid"),
        ("setgid", "setgroups"),
        ("sys_chroot", 'chroot("/run/sshd")'),
        ("kill", "kill("),
    ],
)
def test_none_of_them_is_for_nothing(capability: str, complaint: str) -> None:
    require_programs()
    output = run_with(unit_capabilities() - {capability})
    assert re.search(f"{re.escape(complaint)}.*not permitted", output), output


def test_every_program_that_is_started_is_in_the_managed_plugin() -> None:
    contents = (REPOSITORY / "packaging/managed-plugin/contents.toml").read_text()
    for program in ("sshd", "ssh", "ssh-keygen", "unshare", "setpriv", "rsync"):
        assert f'"{program}"' in contents
