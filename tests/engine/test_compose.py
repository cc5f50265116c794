"""The classic pair: a database on a named volume and a web server, under Compose."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support import images
from tests.support.host import checked, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.daemon import Machine

pytestmark = pytest.mark.xdist_group("engine-compose")

COMPOSE_FILE = f"""
version: "3.8"
services:
  database:
    image: {images.DATABASE_IMAGE}
    network_mode: none
    stop_grace_period: 30s
    volumes: ["rows:/var/lib/mysql"]
  web:
    image: {images.BUSYBOX_IMAGE}
    network_mode: host
    command: httpd -f -p 127.0.0.1:8080 -h /srv
    volumes: ["pages:/srv:ro"]
volumes:
  rows:
    driver: remora
    driver_opts: {{mode: "0750", interval: 5s}}
  pages:
    driver: remora
"""
ROWS = 200


class Project:
    """One Compose project on a machine."""

    def __init__(self, machine: Machine, directory: Path) -> None:
        self.machine = machine
        self.directory = directory
        self.write(COMPOSE_FILE)

    def write(self, text: str) -> None:
        (self.directory / "docker-compose.yml").write_text(text)

    def compose(self, *args: str, check: bool = True) -> str:
        environment = self.machine.engine.cli_environment
        done = subprocess.run(
            ["docker-compose", "--project-name", "shop", *args],
            cwd=self.directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        if check:
            checked(done)
        return done.stdout + done.stderr

    def sql(self, statement: str, *, check: bool = True) -> str:
        done = self.machine.engine.docker(
            *("exec", "shop_database_1", "mariadb", "-N", "-e", statement), check=check
        )
        return done.stdout.strip()

    def up(self) -> None:
        self.compose("up", "-d")
        wait_until(
            lambda: self.sql("SELECT 1", check=False) == "1",
            timeout_s=90,
            what="the database answers",
            interval_s=0.3,
        )

    def page(self) -> str:
        url = "http://127.0.0.1:8080/index.html"
        return self.machine.host.run(["busybox", "wget", "-q", "-O", "-", url]).stdout

    def rows(self) -> str:
        return self.sql("SELECT COUNT(*), SUM(id), MIN(t), MAX(t) FROM shop.orders")


@pytest.fixture
def project(machine: Machine, tmp_path: Path) -> Iterator[Project]:
    """Return a project that is up, with rows in its database and a page to serve."""
    if shutil.which("docker-compose") is None:
        pytest.skip("needs docker-compose")
    if missing := images.missing():
        pytest.skip(f"needs {missing}")
    machine.engine.load_database()
    project = Project(machine, tmp_path)
    yield project
    project.compose("down", "-v", check=False)


def test_rows_survive_down_up_and_a_crash_of_the_daemon(
    machine: Machine, project: Project
) -> None:
    project.up()
    options = machine.volume("shop_rows")["options"]
    assert (options["mode"], options["interval"]) == ("0750", "5s")
    machine.engine.shell("shop_pages", "echo '<h1>open</h1>' > /v/index.html")
    project.sql(
        "CREATE DATABASE shop; CREATE TABLE shop.orders (id INT PRIMARY KEY, t TEXT);"
        + "".join(
            f"INSERT INTO shop.orders VALUES ({number}, 'order {number}');"
            for number in range(ROWS)
        )
    )
    rows = project.rows()
    assert rows.startswith(f"{ROWS}\t")
    assert project.page() == "<h1>open</h1>\n"

    # A crash of the daemon under the running pair.
    machine.daemon.crash()
    project.sql(f"INSERT INTO shop.orders VALUES ({ROWS}, 'during')")
    rows = project.rows()
    assert rows.startswith(f"{ROWS + 1}\t")

    # Down and up.
    project.compose("down")
    machine.assert_nothing_mounted(within_s=5)
    assert "shop_rows" in machine.engine.out("volume", "ls", "-q")
    project.up()
    assert project.rows() == rows
    assert project.page() == "<h1>open</h1>\n"

    # Down with the daemon killed meanwhile; the database recovers its own files.
    machine.daemon.kill()
    machine.engine.docker("kill", "shop_database_1", timeout_s=90)
    machine.daemon.start()
    project.up()
    assert project.rows() == rows

    project.compose("down", "-v")
    machine.assert_nothing_mounted(within_s=5)
    assert machine.daemon.call("List", {}) == {"Volumes": []}


def test_compose_tells_a_wrong_option(machine: Machine, project: Project) -> None:
    project.write(COMPOSE_FILE.replace("interval: 5s", "intervall: 5s"))
    told = project.compose("up", "-d", check=False)
    assert "unknown option 'intervall' for backend 'rsync'" in told
    assert "interval" in told
    assert machine.daemon.call("List", {})["Volumes"] in ([], [{"Name": "shop_pages"}])


def test_compose_keeps_a_volume_whose_options_changed(
    machine: Machine, project: Project
) -> None:
    project.compose("up", "-d", "web")
    machine.engine.shell("shop_pages", "echo kept > /v/index.html")
    project.compose("down")
    changed = COMPOSE_FILE.replace(
        "  pages:\n    driver: remora",
        '  pages: {driver: remora, driver_opts: {gid: "7"}}',
    )
    project.write(changed)
    told = project.compose("up", "-d", "web", check=False)
    print(told)
    assert 'specifies "gid" driver_opt 7' in told
    assert machine.engine.shell("shop_pages", "cat /v/index.html") == "kept"
