"""
The guide to the managed plugin, done as it says, on a machine of its own.

Replaced are the registry's name and systemd's part: the service is a daemon that is
stopped, and the engine is restarted by hand.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import managed
from tests.support.daemon import Daemon
from tests.support.engine import Engine, started_engine
from tests.support.guides import Printed, changed
from tests.support.host import REPOSITORY, SYSTEM_PATH, Host, checked
from tests.support.images import CACHE
from tests.support.managed import ManagedPlugin

pytestmark = pytest.mark.xdist_group("managed-plugin")
STATE = "/var/lib/remora"
# It has a name of this machine's, and no other directory.
PLACES = {"REGISTRY": managed.REGISTRY, "=/srv/remora": f"={STATE}"}


@pytest.fixture
def fresh_engine() -> Iterator[Engine]:
    """Yield an engine that knows no plugin, on a host of its own."""
    with Host("guided") as host:
        engine = started_engine(host)
        yield engine
        # What it runs for plugins lies outside of the host's control group.
        engine.docker("plugin", "disable", "-f", "remora", check=False)
        engine.stop()


def do(engine: Engine, script: str, answers: str = "") -> str:
    """Return what *script* prints, typed as root in the checkout."""
    path = engine.host.work / "answers"
    path.write_text(answers)
    script = changed(script, PLACES)
    if answers:
        # On a terminal, where one question does not take the answer to the next.
        script = f"script --quiet --return --command {shlex.quote(script)} /dev/null"
    return engine.host.run(
        ["sh", "-euc", f"cd {REPOSITORY}; ({script}) < {path}"],
        env={**engine.cli_environment, "DOCKER_HOST": "unix:///run/docker.sock"},
        timeout_s=300,
    ).stdout


@pytest.mark.printed(
    "managed-plugin.md", "Build and enable", "make", "install", "docker"
)
@pytest.mark.printed("managed-plugin.md", "Where things are")
@pytest.mark.printed("managed-plugin.md", "Upgrade")
@pytest.mark.printed("managed-plugin.md", "Switching from the service")
def test_it_is_built_installed_upgraded_and_switched_to(
    fresh_engine: Engine, build_summary: dict[str, str], printed: Printed
) -> None:
    """Built in another place, it has the same bytes as that of the other tests."""
    if shutil.which("docker-registry") is None:
        pytest.skip("needs docker-registry")
    engine, built = fresh_engine, Path(build_summary["output"])
    again = build(engine, printed.take("make").text)
    assert again["digest"] == build_summary["digest"]
    for _ in range(3):
        do(engine, printed.take().text)
    assert "remora:latest" in engine.out("volume", "ls")
    look = f"{printed.take('id=').text}\n{printed.take('runc').text}"
    assert "data" in do(engine, look) + engine.out("volume", "ls")
    engine.docker("volume", "rm", "data")
    engine.docker("plugin", "rm", "-f", "remora")

    registry = managed.run_registry(engine.host)
    next(registry)
    for version in ("1.0", "1.1"):
        publish(engine, built, version)
    # To install, and to upgrade; there are two questions about another version.
    for _ in range(2 + 4):
        do(engine, printed.take().text, "y\ny\n")
    assert engine.inspect("plugin", "remora")["Enabled"]
    next(registry, None)

    # A machine with the service; then the plugin is there, not enabled yet.
    engine.docker("plugin", "rm", "-f", "remora")
    daemon = Daemon(engine.host)
    daemon.start()
    engine.docker("volume", "create", "-d", "remora", "kept")
    engine.shell("kept", "echo kept > /v/file")
    ManagedPlugin(engine).create(built)
    switch(engine, daemon, printed)


def build(engine: Engine, command: str) -> dict[str, str]:
    """
    Build the plugin where packages can be had, for the engine of the host.

    Return what the script says of it.
    """
    done = subprocess.run(
        ["sh", "-euc", command],
        cwd=REPOSITORY,
        env={
            **engine.cli_environment,
            "PATH": SYSTEM_PATH,
            "REMORA_PLUGIN_CACHE": str(CACHE),
        },
        capture_output=True,
        text=True,
        timeout=managed.BUILD_DEADLINE_S,
        check=False,
    )
    told = checked(done).stdout.splitlines()
    return next(json.loads(line) for line in reversed(told) if line[:1] == "{")


def publish(engine: Engine, built: Path, version: str) -> None:
    """Put *version* of the plugin into the registry."""
    reference = f"{managed.REGISTRY}/remora:{version}"
    directory = managed.other_version(built, engine.host.work / version, version)
    ManagedPlugin(engine, reference).create(directory)
    engine.docker("plugin", "push", reference, timeout_s=120)
    engine.docker("plugin", "rm", reference)


def switch(engine: Engine, daemon: Daemon, printed: Printed) -> None:
    """Go from the service *daemon*, which has a volume, to the plugin."""
    assert printed.take().text == (
        "systemctl disable --now remora.socket remora.service"
    )
    daemon.stop()
    for each in printed.rest():
        if each.text == "systemctl restart docker":
            engine.restart()
        else:
            do(engine, each.text)
    assert "remora:latest" in engine.out("volume", "ls", "--filter", "name=kept")
    mount = ("--volume-driver", "remora:latest", "-v", "kept:/v", "remora-test:1")
    assert engine.run(*mount, "cat", "/v/file") == "kept"
