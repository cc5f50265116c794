"""
The shipped `examples/compose-wordpress.yaml`, as it is: rows come in through WordPress.

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
from tests.support.host import REPOSITORY, checked, wait_until
from tests.support.wordpress import Site

pytestmark = pytest.mark.xdist_group("engine-wordpress")
EXAMPLE = REPOSITORY / "examples/compose-wordpress.yaml"
VOLUMES = ("wordpress-rows", "wordpress-site")
START_DEADLINE_S = 120.0


class Pair:
    """The example on a machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.site = Site(
            lambda argv: machine.host.run(argv, timeout_s=90, check=False).stdout
        )

    def compose(self, *args: str, check: bool = True) -> None:
        done = subprocess.run(
            ["docker-compose", "--file", str(EXAMPLE), "--project-name", "blog", *args],
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

    def up(self, page: str) -> None:
        """Start it; return when the page at *page* is there."""
        self.compose("up", "-d")
        wait_until(
            lambda: self.site.page(page) != "",
            timeout_s=START_DEADLINE_S,
            what="WordPress answers",
            evidence=lambda: self.machine.engine.docker("ps", "-a").stdout,
            interval_s=0.5,
        )


@pytest.fixture
def pair(machine: Machine) -> Iterator[Pair]:
    """Yield the example, ready to be started; afterwards it is gone."""
    for program in ("docker-compose", "debootstrap", "mmdebstrap", "curl"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    # Its services find each other by name, for which the engine writes filter rules.
    machine.engine.stop()
    machine.engine.start(extra_args=["--iptables=true"])
    wordpress.load(machine.engine.docker)
    pair = Pair(machine)
    yield pair
    pair.compose("down", "-v", check=False)


def test_the_example_keeps_its_posts(machine: Machine, pair: Pair) -> None:
    pair.up("/wp-admin/install.php")
    assert machine.volume("wordpress-rows")["options"]["interval"] == "5s"
    pair.site.install()
    pair.site.post("before")
    # The daemon's crash is nothing to the pair.
    machine.daemon.crash()
    pair.site.post("after the crash")
    wanted = ["Hello world!", "after the crash", "before"]
    assert pair.site.titles() == wanted

    pair.compose("down")
    machine.assert_nothing_mounted(within_s=10)
    assert set(VOLUMES) <= set(machine.engine.out("volume", "ls", "-q").split())
    pair.up("/")
    assert pair.site.titles() == wanted
    assert "after the crash" in pair.site.page("/")

    pair.compose("down", "-v")
    machine.assert_nothing_mounted(within_s=10)
    assert machine.daemon.call("List", {}) == {"Volumes": []}
