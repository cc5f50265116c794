"""
The same plugin under Docker 28.5, out of Debian sid: the other modules' tests again,
and what only this engine has (sub-paths of volumes, Compose v2).

`REMORA_ENGINE=sid pytest tests/engine/test_volumes.py` runs one module by hand.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from tests.support import debian_root
from tests.support.daemon import Machine, References
from tests.support.host import REPOSITORY
from tests.support.images import BUSYBOX_IMAGE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.engine import Engine

pytestmark = [
    pytest.mark.long,
    pytest.mark.xdist_group("engine-docker-28"),
    pytest.mark.timeout(2400),
]

ROOT = "sid"
SUITES = {
    "harness": ["test_harness.py"],
    "volumes": ["test_volumes.py"],
    "checklist": ["test_checklist.py"],
    "crash-matrix": ["test_crash_matrix.py"],
    "compose": ["test_compose.py"],
    "clients": ["test_clients.py"],
    "migrating": ["test_migrating.py"],
    # How the plugin is built does not depend on the engine.
    "managed": ["managed", "--ignore=tests/engine/managed/test_managed_build.py"],
}
SUITE_DEADLINE_S = 2000
GRACE_S = 1
COMPOSE_FILE = f"""
services:
  writer:
    image: {BUSYBOX_IMAGE}
    network_mode: none
    volumes: ["rows:/v"]
volumes:
  rows:
    driver: remora
    driver_opts: {{mode: "0750", interval: 5s}}
"""


@pytest.fixture(scope="module")
def shared_machine() -> Iterator[Machine]:
    """Return a machine with this engine; the other fixtures are the usual ones."""
    if shutil.which("mmdebstrap") is None:
        pytest.skip("needs mmdebstrap")
    with debian_root.chosen(ROOT):
        machine = Machine(disuse_grace_s=str(GRACE_S))
    yield machine
    machine.close()


def test_the_engine_is_the_one_meant(engine: Engine) -> None:
    versions = engine.out("version", "-f", "{{.Client.Version}} {{.Server.Version}}")
    for version in versions.split():
        major, minor = version.split(".")[:2]
        assert (int(major), int(minor)) >= (28, 5)


@pytest.mark.parametrize("suite", SUITES)
def test_the_other_modules_tests_pass(suite: str, tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    module, *options = SUITES[suite]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider"),
            *(
                "-m",
                "not long",
                f"--junitxml={report}",
                *options,
                f"tests/engine/{module}",
            ),
        ],
        cwd=REPOSITORY,
        env={**os.environ, debian_root.VARIABLE: ROOT},
        capture_output=True,
        text=True,
        timeout=SUITE_DEADLINE_S,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(done.stdout[-20_000:] + done.stderr, pytrace=False)
    counts = ET.parse(report).getroot()[0].attrib
    assert counts["skipped"] == "0", done.stdout
    print(f"{suite}: {counts['tests']} passed in {float(counts['time']):.0f} s")


# A directory of a volume instead of its root (Docker 26 and later)


def subpath(path: str) -> tuple[str, str]:
    """Return the options that mount *path* of the volume `data` at /v."""
    return (
        "--mount",
        f"type=volume,src=data,dst=/v,volume-driver=remora,volume-subpath={path}",
    )


def test_a_container_sees_a_directory_of_the_volume_only(
    machine: Machine, engine: Engine
) -> None:
    engine.shell("data", "mkdir -p /v/deep/er; echo inner > /v/deep/er/file")
    seen = engine.run(
        *(*subpath("deep/er"), BUSYBOX_IMAGE, "sh", "-euc"),
        "cat /v/file; echo written > /v/other; ls -A /v",
    )
    assert seen.split() == ["inner", "file", "other"]
    machine.assert_nothing_mounted()
    assert engine.shell("data", "cat /v/deep/er/other") == "written"


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("absent", "no such file or directory"),
        ("../..", "subpath must be a relative path within the volume"),
        ("way-out", "escapes the base directory"),
    ],
)
def test_a_directory_that_is_not_in_the_volume_is_refused(
    machine: Machine, engine: Engine, path: str, told: str
) -> None:
    """The engine Mounts before it looks: its Unmount must leave nothing."""
    engine.shell("data", "ln -s /etc /v/way-out")
    error = engine.error("run", "--network", "none", *subpath(path), BUSYBOX_IMAGE)
    assert told in error
    machine.assert_nothing_mounted()
    assert engine.shell("data", "ls -A /v") == "way-out"


def test_a_crash_takes_nothing_from_a_container_with_a_subpath(
    machine: Machine, engine: Engine
) -> None:
    """It shows another directory than was mounted; it is a use all the same."""
    engine.shell("data", "mkdir /v/inner; echo kept > /v/inner/file")
    engine.docker(
        *("run", "-d", "--name", "held", "--network", "none"),
        *(*subpath("inner"), BUSYBOX_IMAGE),
    )
    machine.daemon.crash()
    time.sleep(GRACE_S + 2)
    assert machine.references("data") == References(live=0, inherited=1)
    error = machine.daemon.call("Remove", {"Name": "data"})["Err"]
    assert error.startswith("volume-busy: ")
    assert engine.out("exec", "held", "cat", "/v/file") == "kept"
    engine.docker("stop", "held")
    machine.assert_nothing_mounted()


# The engine's questions and answers


def test_a_volume_that_is_not_there_is_told(machine: Machine, engine: Engine) -> None:
    assert "no such volume" in engine.error("volume", "inspect", "absent")
    assert "no such volume" in engine.error("volume", "rm", "absent")
    assert machine.daemon.call("List", {}) == {"Volumes": []}


def test_a_daemon_that_is_away_loses_no_labels(
    machine: Machine, engine: Engine
) -> None:
    engine.docker("volume", "create", "-d", "remora", "--label", "team=blue", "data")
    machine.daemon.kill()
    error = engine.error("volume", "inspect", "data")
    assert "connection refused" in error
    machine.daemon.start()
    assert engine.inspect("volume", "data")["Labels"] == {"team": "blue"}


def test_to_prune_all_prunes_none_of_ours(machine: Machine, engine: Engine) -> None:
    """`all` is newer than the engine of Debian 12; it means the engine's own driver."""
    engine.docker("volume", "create", "-d", "remora", "data")
    assert "data" not in engine.out("volume", "prune", "--all", "--force")
    assert machine.volume("data")["name"] == "data"


# Compose v2


class Project:
    """A Compose project with one container and one volume."""

    def __init__(self, engine: Engine, directory: Path) -> None:
        self._engine = engine
        self._file = directory / "compose.yml"
        self.write(COMPOSE_FILE)

    def write(self, text: str) -> None:
        self._file.write_text(text)

    def compose(self, *args: str, check: bool = True) -> str:
        done = self._engine.docker(
            *("compose", "--project-name", "shop", "--file", str(self._file), *args),
            check=check,
        )
        return done.stdout + done.stderr


@pytest.fixture
def project(engine: Engine, tmp_path: Path) -> Iterator[Project]:
    project = Project(engine, tmp_path)
    yield project
    project.compose("down", "-v", check=False)


def test_compose_up_down_up(machine: Machine, engine: Engine, project: Project) -> None:
    project.compose("up", "-d")
    options = machine.volume("shop_rows")["options"]
    assert (options["mode"], options["interval"]) == ("0750", "5s")
    engine.docker("exec", "shop-writer-1", "sh", "-c", "echo kept > /v/file")
    project.compose("down")
    machine.assert_nothing_mounted()
    project.compose("up", "-d")
    assert engine.out("exec", "shop-writer-1", "cat", "/v/file") == "kept"
    project.compose("down", "-v")
    assert machine.daemon.call("List", {}) == {"Volumes": []}


def test_compose_keeps_a_volume_whose_options_changed(
    machine: Machine, engine: Engine, project: Project
) -> None:
    """It asks whether to make it anew; without an answer it does not."""
    project.compose("up", "-d")
    engine.docker("exec", "shop-writer-1", "sh", "-c", "echo kept > /v/file")
    project.write(COMPOSE_FILE.replace("5s", "6s"))
    assert "Recreate (data will be lost)?" in project.compose("up", "-d")
    assert machine.volume("shop_rows")["options"]["interval"] == "5s"
    assert engine.out("exec", "shop-writer-1", "cat", "/v/file") == "kept"


def test_compose_warns_of_a_volume_that_it_did_not_make(
    machine: Machine, engine: Engine, project: Project
) -> None:
    """As on the second node, whose engine knows of no labels and no options."""
    options = ("-o", "mode=0750", "-o", "interval=5s")
    machine.daemon.cli("create", "shop_rows", *options)
    told = project.compose("up", "-d")
    assert "already exists but was not created by Docker Compose" in told
    assert engine.inspect("volume", "shop_rows")["Labels"] is None
    project.compose("down", "-v")
    assert machine.daemon.call("List", {}) == {"Volumes": []}


def test_compose_tells_a_wrong_option(machine: Machine, project: Project) -> None:
    project.write(COMPOSE_FILE.replace("interval", "intervall"))
    told = project.compose("up", "-d", check=False)
    assert "unknown option 'intervall' for backend 'rsync'" in told
    assert machine.daemon.call("List", {}) == {"Volumes": []}
