"""
docs/guides/migrating.md done as it says, where bytes lie on an NFS export.

Files and commands are those of the guide. Replaced are: the editor (it writes the next
file), systemd's starts and stops, the server's name and its export, and what a node
lacks (a network, the database's image: a sleeping busybox has its name). The built-in
driver is Docker's own. netshare and Convoy cannot be had: `other_plugin` answers the
engine in their place, with the export mounted and laid out as they do it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Final

import pytest

from tests.lab.lab import Lab
from tests.lab.nfs import XFS, NfsServer, mount, unmount_all
from tests.lab.nfs_cluster import WITH_COMPOSE, NfsNode, empty, running
from tests.lab.services import Engine
from tests.support import guides, migrating
from tests.support.host import PYTHON_ENVIRONMENT, wait_until
from tests.support.images import BUSYBOX_IMAGE
from tests.support.other_plugin import NAMES, SOCKETS

TOPOLOGY = WITH_COMPOSE
DIRECTORY: Final = "/data/shop"
NAS: Final = "/mnt/nas"
ROWS: Final = "/var/lib/mysql/rows"
IMAGE: Final = "mariadb:10.11"
EFS: Final = "fs-0123456789abcdef0.efs.us-east-1.amazonaws.com"
LOCAL: Final = "From local with NFS options"
ADOPTED: Final = "With snapshots, and protected from deletion"
NETSHARE: Final = "From docker-volume-netshare"
CREATED: Final = "Where netshare made the directories"
CONVOY: Final = "From Convoy on NFS"
# The driver's name, and where it has a volume's directory.
LAYOUTS: Final = {
    LOCAL: ("local", ""),
    NETSHARE: ("nfs", f"{NAS}/rows"),
    CREATED: ("nfs", f"{NAS}/{{name}}"),
    CONVOY: ("convoy", f"{NAS}/{{name}}"),
}


class Shop:
    """The project `shop` on alpha."""

    def __init__(self, alpha: NfsNode, engine: Engine) -> None:
        self.node = alpha.node
        self._alpha = alpha
        self._engine = engine
        self._files: Iterator[str] = iter(())
        self._layout = ("", "")
        self.runners: dict[str, migrating.Runner] = {
            "docker-compose": lambda words: self.inside(*words),
            "docker": lambda words: engine.docker(*words[1:]),
            "remora": lambda words: alpha.remora.cli(*words[1:]),
            "systemctl": self._systemctl,
            "editor": lambda _: self.edit(),
            "cp": lambda words: self.inside(*words),
        }

    def begin(self, files: list[str], layout: tuple[str, str] = ("", "")) -> None:
        """Have *files* to write, and the plugin of *layout*, which is not Docker's."""
        self._files, self._layout = iter(files), layout
        self.edit()
        if layout[1]:
            self._start_plugin()

    def edit(self) -> None:
        """Write the next file that the guide has, for this server and machine."""
        self.put(next(self._files), "docker-compose.yml")

    def put(self, text: str, name: str) -> None:
        nas = self._alpha.server.ipv4
        text = text.replace("nas.example.net", nas).replace("/export/volumes", XFS)
        text = text.replace(f"{EFS}:", f"{nas}:{XFS}")
        text = text.replace(IMAGE, f"{IMAGE}\n    network_mode: none")
        self.node.put(text, f"{DIRECTORY}/{name}")

    def inside(self, *command: str) -> str:
        """Return what *command* prints in the project's directory."""
        script = f'cd {DIRECTORY}; exec "$@"'
        return self.node.run(
            ["sh", "-euc", script, "sh", *command], timeout_s=180
        ).stdout

    def write(self, row: str) -> None:
        """Have the container write one row more."""
        script = f"echo {row} >> {ROWS}; sync"
        self._engine.docker("exec", "shop_database_1", "sh", "-c", script)

    def rows(self) -> list[str]:
        """Return the rows that the container sees."""
        return self._engine.out("exec", "shop_database_1", "cat", ROWS).split()

    def driver(self) -> str:
        """Return the driver of the volume that the container has."""
        form = "{{(index .Mounts 0).Driver}}"
        return self._engine.out("inspect", "-f", form, "shop_database_1")

    def _start_plugin(self) -> None:
        name, mountpoint = self._layout
        if not any(each.mount_point == NAS for each in self.node.mounts(NAS)):
            mount(self.node, f"{self._alpha.server.ipv4}:{XFS}", NAS, "vers=4.2")
        program = [sys.executable, "-m", "tests.support.other_plugin"]
        self._plugin = self.node.popen(
            [*program, name, mountpoint, "keeps"],
            env=PYTHON_ENVIRONMENT,
            log=self.node.log_path("other-plugin"),
        )
        socket = f"{SOCKETS}/{name}.sock"
        wait_until(
            lambda: not self.node.run(["test", "-S", socket], check=False).returncode,
            timeout_s=30,
            what="the old plugin listens",
        )

    def _systemctl(self, words: list[str]) -> None:
        if words[1] == "start":
            self._start_plugin()
            return
        self._plugin.kill()
        self.node.run(["rm", f"{SOCKETS}/{self._layout[0]}.sock"])


@pytest.fixture(scope="module")
def alpha(shared_lab: Lab, shared_nfs_server: NfsServer) -> Iterator[NfsNode]:
    with running(shared_lab, shared_nfs_server, "alpha") as (alpha,):
        yield alpha


@pytest.fixture(scope="module")
def engine(alpha: NfsNode) -> Iterator[Engine]:
    engine = alpha.node.start_docker()
    engine.docker("tag", BUSYBOX_IMAGE, IMAGE)
    yield engine
    engine.stop()


@pytest.fixture
def shop(alpha: NfsNode, engine: Engine, nfs_server: NfsServer) -> Iterator[Shop]:
    """Yield a project; afterwards nothing of it is left."""
    nfs_server.run(f"mkdir -p {nfs_server.local(XFS)}/rows")
    yield Shop(alpha, engine)
    if containers := engine.out("ps", "-aq").split():
        engine.docker("rm", "-f", *containers)
    for volume in engine.out("volume", "ls", "-q").split():
        engine.docker("volume", "rm", volume, check=False)
    alpha.node.run(["rm", "-rf", DIRECTORY, str(NAMES)])
    unmount_all(alpha.node)
    empty(nfs_server)


def there_and_back(shop: Shop, printed: guides.Printed, heading: str) -> None:
    """Do what the section says, and look for the rows."""
    there, back = migrating.there_and_back(printed)
    shop.begin(migrating.files(heading), LAYOUTS[heading])
    shop.inside("docker-compose", "up", "-d")
    shop.write("old")
    assert shop.driver() == LAYOUTS[heading][0]

    migrating.run(there, shop.runners)
    assert (shop.driver(), shop.rows()) == ("remora", ["old"])
    shop.write("new")

    migrating.run(back or migrating.back_of(NETSHARE), shop.runners)
    assert (shop.driver(), shop.rows()) == (LAYOUTS[heading][0], ["old", "new"])


@pytest.mark.printed("migrating.md", "From local with NFS options")
def test_from_local(shop: Shop, printed: guides.Printed) -> None:
    there_and_back(shop, printed, LOCAL)


@pytest.mark.printed("migrating.md", "From docker-volume-netshare")
def test_from_netshare(shop: Shop, printed: guides.Printed) -> None:
    there_and_back(shop, printed, NETSHARE)


@pytest.mark.printed("migrating.md", "Where netshare made the directories")
def test_from_directories_of_netshare(shop: Shop, printed: guides.Printed) -> None:
    there_and_back(shop, printed, CREATED)


@pytest.mark.printed("migrating.md", "From Convoy on NFS")
def test_from_convoy(shop: Shop, printed: guides.Printed) -> None:
    there_and_back(shop, printed, CONVOY)


@pytest.mark.printed("migrating.md", "With snapshots, and protected from deletion")
def test_the_directory_is_adopted_with_snapshots_and_given_back(
    shop: Shop, printed: guides.Printed
) -> None:
    local = migrating.files(LOCAL)
    shop.begin([local[1], *migrating.files(ADOPTED)])
    shop.inside("docker-compose", "up", "-d")
    shop.write("direct")

    migrating.run(migrating.there_and_back(printed)[0], shop.runners)
    assert (shop.driver(), shop.rows()) == ("remora", ["direct"])
    shop.write("adopted")

    shop.put(local[0], "before.yml")
    migrating.run(migrating.back_of(LOCAL), shop.runners)
    assert (shop.driver(), shop.rows()) == ("local", ["direct", "adopted"])


def test_a_file_system_of_rexray_is_mounted_as_it_is(
    shop: Shop, nfs_server: NfsServer
) -> None:
    """The old file is read by Compose and not run: `efs` is a cloud's."""
    data = f"{nfs_server.local(XFS)}/data"
    nfs_server.run(f"mkdir {data}; echo old > {data}/rows")
    shop.begin(migrating.files("From REX-Ray on NFS"))
    assert "driver: rexray/efs" in shop.inside("docker-compose", "config")
    shop.edit()
    shop.inside("docker-compose", "up", "-d")
    assert (shop.driver(), shop.rows()) == ("remora", ["old"])


def test_an_export_is_not_copied_into_itself(
    alpha: NfsNode, nfs_server: NfsServer
) -> None:
    """Seen through a mount of its own, the copy has another device's number."""
    nfs_server.run(f"mkdir {nfs_server.local(XFS)}/rows")
    mount(alpha.node, f"{alpha.server.ipv4}:{XFS}", NAS, "vers=4.2,nosharecache")
    options = ("-o", f"server={alpha.server.ipv4}", "-o", f"share={XFS}")
    try:
        done = alpha.remora.cli("import", NAS, "--name", "all", *options, check=False)
    finally:
        unmount_all(alpha.node)
        empty(nfs_server)
    assert "the copy would hold itself" in done.stderr
