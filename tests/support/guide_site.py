"""
Three Debian machines on one network, as the guides have them: alpha, beta and gamma.

Each is booted by a real systemd (`booted.py`), with dockerd, sshd and an etcd that
Debian has started; their addresses are those of the guides, so that commands run there
as they are printed. There is no other network: packages for Python lie in `WHEELS`.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

from . import booted, images, wheels
from .booted import BootedMachine
from .checkouts import copy_checkout
from .guides import Command
from .host import SYSTEM_PATH
from .ssh_server import make_key

ADDRESSES: Final = {"alpha": "10.0.0.1", "beta": "10.0.0.2", "gamma": "10.0.0.3"}
CHECKOUT: Final = "/opt/remora"
WHEELS: Final = "/opt/wheels"
RUN_S: Final = 120.0
# What `make install` would fetch lies here; nothing else can be had.
OFFLINE: Final = f"PIP_NO_INDEX=1 PIP_FIND_LINKS={WHEELS}"


class GuideMachine(BootedMachine):
    """A machine of the guides."""

    def __init__(self, name: str) -> None:
        super().__init__(name, masked=())
        # Containers have the network that they have when nobody says anything.
        settings = {"iptables": False, "cgroup-parent": f"/{self.group}"}
        (self.root / "etc/docker/daemon.json").write_text(json.dumps(settings))

    def shell(
        self,
        script: str,
        *,
        stdin: bytes = b"",
        check: bool = True,
        timeout_s: float = RUN_S,
    ) -> str:
        """Return what *script* prints on both streams, typed in a shell of root's."""
        # The shell itself would tell of the directory that it is called in.
        script = f"exec 2>&1; {script}"
        done = self.run(
            ["env", "--chdir=/root", "HOME=/root", "bash", "-c", script],
            stdin=stdin,
            check=False,
            timeout_s=timeout_s,
        )
        assert not check or done.returncode == 0, (
            f"{self.name}: {script}: exit {done.returncode}\n{done.stdout}"
        )
        return done.stdout

    def type(self, command: Command, *, answers: str = "") -> str:
        """Return what *command* prints, as it stands in the guide."""
        if not answers:
            return self.shell(command.text)
        return self.answer(command.text, answers)

    def answer(self, command: str, answers: str) -> str:
        """Return what *command* prints on a terminal, where it is answered."""
        typed = f"script --quiet --return --command {shlex.quote(command)} /dev/null"
        return self.shell(typed, stdin=answers.encode())


class Site:
    """See the module's text; made switched off."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        try:
            self._network = self._add_network()
            made = self._stack.enter_context(tempfile.TemporaryDirectory())
            self._keys = Path(made)
            self.machines = {
                name: self._stack.enter_context(GuideMachine(name))
                for name in ADDRESSES
            }
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __getitem__(self, name: str) -> GuideMachine:
        return self.machines[name]

    def boot(self) -> None:
        """Switch all on: with a network, a checkout, and an image for containers."""
        make_key(self._keys / "id_ed25519")
        for machine in self.machines.values():
            self.switch_on(machine)

    def switch_on(self, machine: GuideMachine) -> None:
        """Boot *machine* for the first time."""
        self.add_key(machine)
        machine.boot()
        self.plug_in(machine)
        machine.run(["docker", "load"], stdin=images.busybox_image())
        machine.run(["docker", "tag", images.BUSYBOX_IMAGE, "busybox"])

    def replace(self, name: str) -> GuideMachine:
        """Return a new machine of that name and address; the old one is gone."""
        self[name].close()
        machine = self._stack.enter_context(GuideMachine(name))
        self.machines[name] = machine
        self.switch_on(machine)
        # As a network card tells them when its link comes up.
        for each in self.machines.values():
            each.shell("ip neighbour flush all")
        return machine

    def cut_off(self, name: str) -> None:
        """Silently drop what *name* sends and is sent."""
        _run(*self._network, "ip", "link", "set", f"to-{name}", "nomaster")

    def heal(self, name: str) -> None:
        """End that."""
        _run(*self._network, "ip", "link", "set", f"to-{name}", "master", "bridge0")

    def plug_in(self, machine: GuideMachine) -> None:
        """Connect *machine* to the others."""
        wire = f"to-{machine.name}"
        there = ("nsenter", f"--net=/proc/{machine.pid}/ns/net", "--", "ip")
        _run(
            *(*self._network, "ip", "link", "add", wire, "type", "veth"),
            *("peer", "name", "eth0", "netns", str(machine.pid)),
        )
        _run(*self._network, "ip", "link", "set", wire, "master", "bridge0", "up")
        address = f"{ADDRESSES[machine.name]}/24"
        _run(*there, "address", "add", address, "dev", "eth0")
        _run(*there, "link", "set", "eth0", "up")

    def _add_network(self) -> tuple[str, ...]:
        """Return how to enter a network with a bridge; it ends with this process."""
        holder = self._stack.enter_context(
            subprocess.Popen(
                ["unshare", "--net", "sh", "-c", "echo; exec cat"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={"PATH": SYSTEM_PATH},
            )
        )
        self._stack.callback(holder.kill)
        assert holder.stdout is not None
        holder.stdout.readline()
        network = ("nsenter", f"--net=/proc/{holder.pid}/ns/net", "--")
        _run(*network, "ip", "link", "add", "bridge0", "type", "bridge")
        _run(*network, "ip", "link", "set", "bridge0", "up")
        return network

    def add_key(self, machine: GuideMachine) -> None:
        """Let root of each machine be root on *machine*, before it boots."""
        keys = machine.root / "root/.ssh"
        keys.mkdir(parents=True, mode=0o700)
        for kind in ("id_ed25519", "id_ed25519.pub"):
            shutil.copy(self._keys / kind, keys / kind)
        shutil.copy(self._keys / "id_ed25519.pub", keys / "authorized_keys")

    def add_checkout(self, name: str) -> None:
        """Bring this tree and the locked packages to the machine, before it boots."""
        root = self[name].root
        copy_checkout(root / CHECKOUT.lstrip("/"))
        shutil.copytree(wheels.directory(), root / WHEELS.lstrip("/"))


def missing() -> str:
    """Return what this machine lacks, or ''."""
    return booted.missing() or ("" if shutil.which("ip") else "ip")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=30, env={"PATH": SYSTEM_PATH})
