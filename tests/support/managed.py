"""The managed plugin in the engine of a `Host`: built, enabled, looked at, killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

from .host import REPOSITORY, Host, wait_until
from .images import CACHE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .engine import Engine

BUILD = REPOSITORY / "packaging/managed-plugin/build"
BUILD_DEADLINE_S = 600
# The engine dials what it starts after 0.5 s and again 3 s later. One that dies before
# the engine got through is not started again, and disabled after the last attempt.
SETTLED_S = 4
RUNC_ROOT = "/run/docker/runtime-runc/plugins.moby"
REGISTRY = "127.0.0.1:5000"
REGISTRY_CONFIGURATION = """\
version: 0.1
storage: {{filesystem: {{rootdirectory: {directory}}}}}
http: {{addr: "{address}"}}
log: {{level: warn, accesslog: {{disabled: true}}}}
"""


def missing() -> str:
    """Return the program that a build lacks, or ''."""
    return "" if shutil.which("mmdebstrap") else "mmdebstrap"


def build(output: Path, product: str = "plugin") -> dict[str, Any]:
    """Build *product* in *output*; return what the script says of it."""
    done = subprocess.run(
        [str(BUILD), "--no-create", "--output", str(output), product],
        env={
            **os.environ,
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            # Debian's packages are unpacked once per machine and list of packages.
            "REMORA_PLUGIN_CACHE": str(CACHE),
        },
        capture_output=True,
        text=True,
        timeout=BUILD_DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


def other_version(built: Path, target: Path, marker: str) -> Path:
    """Return a copy of *built* in *target* that the file /etc/*marker* tells apart."""
    # Hard links: the files are many, and nobody changes them.
    subprocess.run(["cp", "-al", str(built), str(target)], check=True, timeout=60)
    (target / "rootfs/etc" / marker).write_text(marker)
    return target


class ManagedPlugin:
    """The plugin *name* of *engine*."""

    def __init__(self, engine: Engine, name: str = "remora") -> None:
        self.engine = engine
        self.host = engine.host
        self.name = name

    def create(self, directory: Path) -> None:
        """Make the plugin of *directory* (config.json, rootfs), disabled."""
        self.engine.docker("plugin", "create", self.name, str(directory), timeout_s=120)

    def enable(self) -> None:
        """Enable the plugin; its log is at the end of dockerd's."""
        self.engine.docker("plugin", "enable", self.name)

    def disable(self, *options: str) -> None:
        """Disable the plugin."""
        self.engine.docker("plugin", "disable", *options, self.name)

    def set(self, **settings: str) -> None:
        """Disable the plugin, change *settings*, enable it again."""
        self.disable()
        pairs = [f"{key}={value}" for key, value in settings.items()]
        self.engine.docker("plugin", "set", self.name, *pairs)
        self.enable()

    def inspect(self) -> dict[str, Any]:
        """Return `docker plugin inspect`."""
        return self.engine.inspect("plugin", self.name)

    @property
    def enabled(self) -> bool:
        """Whether the engine has it enabled."""
        return bool(self.inspect()["Enabled"])

    @property
    def id(self) -> str:
        """The plugin's id, 64 hexadecimal digits."""
        return str(self.inspect()["Id"])

    @property
    def pid(self) -> int:
        """The daemon's process id, as the host counts."""
        done = self.host.run(["runc", "--root", RUNC_ROOT, "state", self.id])
        return int(json.loads(done.stdout)["pid"])

    def running(self, pid: int) -> bool:
        """Return whether the host has a process *pid* that is our daemon."""
        done = self.host.run(["cat", f"/proc/{pid}/cmdline"], check=False)
        return "remora" in done.stdout

    def crash(self) -> None:
        """Kill the daemon; return when the engine has started another."""
        old = self.pid
        wait_until(
            lambda: self._age_s(old) > SETTLED_S,
            timeout_s=2 * SETTLED_S,
            what="the engine has found the last one that it started",
        )
        self.host.run(["kill", "-KILL", str(old)])
        wait_until(
            lambda: not self.running(old) and self._answers(),
            timeout_s=20,
            what="the engine starts the plugin again",
        )

    def _age_s(self, pid: int) -> int:
        return int(self.host.run(["ps", "-o", "etimes=", "-p", str(pid)]).stdout)

    def _answers(self) -> bool:
        return self.remora("status", check=False).returncode == 0

    def remora(
        self, *args: str, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Return the outcome of `remora ARGS...` inside the plugin."""
        return self.host.run(
            ["runc", "--root", RUNC_ROOT, "exec", self.id, "remora", *args],
            check=check,
        )

    def references(self, volume: str) -> dict[str, int]:
        """Return the counts of mount references that `docker volume inspect` shows."""
        counts: dict[str, int] = self.engine.inspect("volume", volume)["Status"][
            "references"
        ]
        return counts

    def in_its_mounts(self, *command: str) -> str:
        """Return what *command*, run in the plugin's mount namespace, prints."""
        enter = ["nsenter", "--target", str(self.pid), "--mount"]
        return self.host.run([*enter, *command]).stdout

    @property
    def propagated(self) -> str:
        """The engine's directory that shows what the plugin mounts."""
        return f"/var/lib/docker/plugins/{self.id}/propagated-mount"

    def mounts(self) -> list[str]:
        """Return the names of what the host sees mounted for the plugin's volumes."""
        return [
            entry.mount_point.rpartition("/")[2]
            for entry in self.host.mounts(below=self.propagated)
        ]


def run_registry(host: Host) -> Iterator[str]:
    """Yield the address of a registry that runs on the host's loopback."""
    directory = host.work / "registry"
    configuration = host.work / "registry.yml"
    configuration.write_text(
        REGISTRY_CONFIGURATION.format(directory=directory, address=REGISTRY)
    )
    process = host.popen(
        ["docker-registry", "serve", str(configuration)], log=host.log_path("registry")
    )
    port = REGISTRY.rpartition(":")[2]
    wait_until(
        lambda: f":{int(port):04X}" in host.run(["cat", "/proc/net/tcp"]).stdout,
        timeout_s=10,
        what="the registry listens",
    )
    yield REGISTRY
    process.terminate()
    process.wait(timeout=10)
    host.forget(process)
