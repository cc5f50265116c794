"""
The shipped Compose file with WordPress, as it is: rows come in through WordPress.

The stack file is in `tests/lab/test_swarm_wordpress.py`: a swarm publishes ports with
IPVS, which the lab's kernel has.

No registry is needed: images of the same names are made from Debian's MariaDB and
WordPress, see `tests.support.wordpress`. The registry's images are not tried.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.support import wordpress
from tests.support.daemon import Machine
from tests.support.guides import Printed, changed
from tests.support.host import REPOSITORY, checked, wait_until
from tests.support.wordpress import Site

pytestmark = pytest.mark.xdist_group("engine-wordpress")
EXAMPLES = REPOSITORY / "examples"
VOLUMES = ("wordpress-rows", "wordpress-site")
PROJECT = "blog"
START_DEADLINE_S = 120.0
INSTALL = "/wp-admin/install.php"


class Pair:
    """WordPress and its database on a machine, as the Compose file has them."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.site = Site(
            lambda argv: machine.host.run(argv, timeout_s=90, check=False).stdout
        )

    def compose(self, *args: str, check: bool = True) -> None:
        file = str(EXAMPLES / "compose-wordpress.yaml")
        done = subprocess.run(
            ["docker-compose", "--file", file, "--project-name", PROJECT, *args],
            env={
                **self.machine.engine.cli_environment,
                "WORDPRESS_DB_PASSWORD": "not-guessed",
            },
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        if check:
            checked(done)

    def type(self, printed: Printed) -> None:
        """Do what the guide says, in the directory of the file."""
        given = {"=...": "=not-guessed"}
        script = "\n".join(changed(each.text, given) for each in printed.rest())
        environment = self.machine.engine.cli_environment
        done = subprocess.run(
            ["sh", "-euc", script],
            cwd=EXAMPLES,
            env={**environment, "COMPOSE_PROJECT_NAME": PROJECT},
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        checked(done)

    def wait(self, page: str) -> None:
        """Return when the page at *page* is there."""
        wait_until(
            lambda: self.site.page(page) != "",
            timeout_s=START_DEADLINE_S,
            what="WordPress answers",
            evidence=self._evidence,
            interval_s=0.5,
        )

    def _evidence(self) -> str:
        docker = self.machine.engine.docker
        containers = docker("ps", "-a", "-q").stdout.split()
        logs = [docker("logs", "--tail", "20", each) for each in containers]
        return docker("ps", "-a").stdout + "".join(
            each.stdout + each.stderr for each in logs
        )


@pytest.fixture
def pair(machine: Machine) -> Iterator[Pair]:
    """Yield the examples, ready to be started; afterwards they are gone."""
    for program in ("docker-compose", "debootstrap", "mmdebstrap", "curl"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    # Services find each other by name, for which the engine writes filter rules.
    machine.engine.stop()
    machine.engine.start(extra_args=["--iptables=true"])
    wordpress.load(machine.engine.docker)
    pair = Pair(machine)
    yield pair
    pair.compose("down", "-v", check=False)


@pytest.mark.printed(
    "swarm.md", "WordPress, as Compose file and stack", "export", "docker-compose"
)
def test_the_compose_file(machine: Machine, pair: Pair, printed: Printed) -> None:
    """Posts survive a crash of the daemon, and `down` and `up`."""
    pair.type(printed)
    pair.wait(INSTALL)
    assert machine.volume("wordpress-rows")["options"]["interval"] == "10s"
    pair.site.install()
    pair.site.post("before")
    machine.daemon.crash()
    pair.site.post("after the crash")
    wanted = ["Hello world!", "after the crash", "before"]
    assert pair.site.titles() == wanted

    pair.compose("down")
    machine.assert_nothing_mounted(within_s=10)
    assert set(VOLUMES) <= set(machine.engine.out("volume", "ls", "-q").split())
    pair.compose("up", "-d")
    pair.wait("/")
    assert pair.site.titles() == wanted
    assert "after the crash" in pair.site.page("/")

    pair.compose("down", "-v")
    machine.assert_nothing_mounted(within_s=10)
    assert machine.daemon.call("List", {}) == {"Volumes": []}
