"""
docs/guides/migrating.md done as it says, where bytes lie on a machine's own disks.

Files and commands are those of the guide. Replaced are: the editor (it writes the next
file), systemd's and the plugins' starts and stops, the name of a disk, and what the
machine lacks (a network). REX-Ray and Convoy cannot be had: `other_plugin` answers the
engine in their place, with bytes where they lay them out (for REX-Ray the directory
`data` of an ext4 disk, for Convoy's device mapper the root of one, for its vfs a
directory named like the volume), and deletes where they delete. The database is real.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.support import images, migrating
from tests.support.daemon import Machine
from tests.support.host import PYTHON_ENVIRONMENT, checked, wait_until
from tests.support.other_plugin import NAMES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support import guides

pytestmark = pytest.mark.xdist_group("engine-migrating")

DATABASE: Final = "mariadb:10.11"
DISK: Final = "/old-disk.img"
OLD_MOUNT: Final = "/old"
# Where each of them has a volume's bytes, as `other_plugin` is told; and what removing
# does. In a directory of a test's own, which goes with its machine.
# An engine takes 15 s to find out that a plugin has gone: the one of which it is to
# find that out is the last.
LAYOUTS: Final = {
    "From Convoy with device mapper": ("convoy", OLD_MOUNT, "deletes"),
    "From Convoy on a disk": ("convoy", "/opt/convoy/{name}", "keeps"),
    "From REX-Ray with disks": ("rexray/ebs", f"{OLD_MOUNT}/data", "deletes"),
}


class Shop:
    """The project `shop` on a machine that comes from another plugin."""

    def __init__(self, machine: Machine, directory: Path, heading: str) -> None:
        self.machine = machine
        self.directory = directory / "shop"
        self.directory.mkdir()
        self._layout = LAYOUTS[heading]
        self._files = iter(migrating.files(heading))
        self._plugin: subprocess.Popen[bytes] | None = None
        self.runners: dict[str, migrating.Runner] = {
            "docker-compose": lambda words: self.compose(*words[1:]),
            "docker": self._docker,
            "remora": lambda words: machine.daemon.cli(*words[1:], timeout_s=120),
            "systemctl": self._systemctl,
            "editor": lambda _: self.edit(),
            "cp": partial(subprocess.run, cwd=self.directory, check=True, timeout=10),
            "mkdir": machine.host.run,
            "mv": machine.host.run,
            "mount": self._mount,
            "umount": self._unmount,
        }

    def edit(self) -> None:
        """Write the next file that the guide has, for a machine without a network."""
        text = next(self._files).replace(
            f"image: {DATABASE}", f"image: {DATABASE}\n    network_mode: none"
        )
        (self.directory / "docker-compose.yml").write_text(text)

    def compose(self, *args: str) -> str:
        done = subprocess.run(
            ["docker-compose", *args],
            cwd=self.directory,
            env=self.machine.engine.cli_environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        return checked(done).stdout + done.stderr

    def sql(self, statement: str, *, check: bool = True) -> str:
        done = self.machine.engine.docker(
            *("exec", "shop_database_1", "mariadb", "-N", "-e", statement), check=check
        )
        return done.stdout.strip()

    def wait(self) -> None:
        """Return when the database answers."""
        wait_until(
            lambda: self.sql("SELECT 1", check=False) == "1",
            timeout_s=90,
            what="the database answers",
            interval_s=0.3,
        )

    def driver(self) -> str:
        """Return the driver of the volume that the database has."""
        found = self.machine.engine.inspect("container", "shop_database_1")
        return str(found["Mounts"][0]["Driver"])

    def make_disk(self) -> None:
        """Make the disk that the old plugin has; it is attached and mounted."""
        script = f"truncate -s 300M {DISK}; mkfs.ext4 -q {DISK}; mkdir -p {OLD_MOUNT}"
        self.machine.host.run(["sh", "-euc", script])
        self._attach()

    def start_plugin(self) -> None:
        """Start the old plugin."""
        host = self.machine.host
        self._plugin = host.popen(
            [sys.executable, "-m", "tests.support.other_plugin", *self._layout],
            env=PYTHON_ENVIRONMENT,
            log=host.log_path("other-plugin"),
        )
        socket = host.path(f"/run/docker/plugins/{self._layout[0]}.sock")
        wait_until(socket.is_socket, timeout_s=20, what="the old plugin listens")

    def stop_plugin(self) -> None:
        """Stop the old plugin; a disk of its own is not mounted any more."""
        plugin, self._plugin = self._plugin, None
        if plugin is None:
            return
        plugin.kill()
        plugin.wait(timeout=10)
        self.machine.host.forget(plugin)
        host = self.machine.host
        host.path(f"/run/docker/plugins/{self._layout[0]}.sock").unlink()
        host.run(["umount", OLD_MOUNT], check=False)

    def _docker(self, words: list[str]) -> None:
        if words[1:3] == ["plugin", "disable"]:
            self.stop_plugin()
        elif words[1:3] == ["plugin", "enable"]:
            self._attach()
            self.start_plugin()
        else:
            image = {"busybox": images.BUSYBOX_IMAGE}
            given = [image.get(each, each) for each in words[1:]]
            self.machine.engine.docker(*given, timeout_s=120)

    def _systemctl(self, words: list[str]) -> None:
        verb, unit = words[1:]
        if unit == "docker":
            assert verb == "restart"
            self.machine.engine.restart()
        elif verb == "stop":
            self.stop_plugin()
        else:
            self.start_plugin()

    def _attach(self) -> None:
        """Mount the disk as the old plugin does for a container."""
        self.machine.host.run(["mount", "-o", "loop", DISK, OLD_MOUNT])

    def _unmount(self, words: list[str]) -> None:
        self.machine.host.run(words)
        if self._plugin is not None:
            self._attach()

    def _mount(self, words: list[str]) -> None:
        *options, device, target = words[1:]
        assert device.startswith("/dev/")
        host = self.machine.host
        # Convoy has it mounted nowhere while no container uses it.
        host.run(["umount", OLD_MOUNT], check=False)
        # The loop device is gone with the mount.
        host.run(["mount", *options, "-o", "loop", DISK, target])


@pytest.fixture(scope="module")
def with_database(shared_machine: Machine) -> Machine:
    """Return the module's machine, with the image that the guide's files name."""
    if missing := images.missing():
        pytest.skip(f"needs {missing}")
    shared_machine.engine.load_database()
    shared_machine.engine.docker("tag", images.DATABASE_IMAGE, DATABASE)
    return shared_machine


@pytest.fixture
def start(
    machine: Machine, with_database: Machine, tmp_path: Path
) -> Iterator[Callable[[str], Shop]]:
    """Return a function that makes the project of a section; the old plugin runs."""
    made: list[Shop] = []

    def start(heading: str) -> Shop:
        shop = Shop(with_database, tmp_path, heading)
        made.append(shop)
        if "{name}" not in LAYOUTS[heading][1]:
            shop.make_disk()
        shop.start_plugin()
        shop.edit()
        shop.compose("up", "-d")
        shop.wait()
        shop.sql("CREATE DATABASE shop; CREATE TABLE shop.orders (id INT PRIMARY KEY)")
        shop.sql("INSERT INTO shop.orders VALUES (1), (2), (3)")
        return shop

    yield start
    with suppress(AssertionError):
        made[0].compose("down", "--volumes")
    # The plugin goes with the machine: an engine looks long for one that has gone.
    machine.host.run(["umount", OLD_MOUNT], check=False)
    machine.host.run(["rm", "-rf", DISK, OLD_MOUNT, "/opt/convoy", str(NAMES)])


def there_and_back(
    shop: Shop, printed: guides.Printed, *, is_copied_back: bool
) -> None:
    """Do what the section says, and look for the rows."""
    there, back = migrating.there_and_back(printed)
    old = shop.driver()
    assert old in ("convoy", "rexray/ebs")
    migrating.run(there, shop.runners)
    shop.wait()
    assert shop.driver() == "remora"
    assert shop.sql("SELECT SUM(id) FROM shop.orders") == "6"
    shop.sql("INSERT INTO shop.orders VALUES (10)")

    migrating.run(back, shop.runners)
    shop.wait()
    assert shop.driver() == old
    expected = "16" if is_copied_back else "6"
    assert shop.sql("SELECT SUM(id) FROM shop.orders") == expected

    # Who is not sure begins again, and stops at what fails: nothing may be lost.
    with suppress(AssertionError):
        migrating.run(back, shop.runners)
    shop.compose("up", "-d")
    shop.wait()
    assert shop.driver() == old
    assert shop.sql("SELECT SUM(id) FROM shop.orders") == expected


@pytest.mark.printed("migrating.md", "From Convoy with device mapper")
def test_from_convoy_with_device_mapper(
    start: Callable[[str], Shop], printed: guides.Printed
) -> None:
    shop = start("From Convoy with device mapper")
    there_and_back(shop, printed, is_copied_back=False)


@pytest.mark.printed("migrating.md", "From Convoy on a disk")
def test_from_convoy_on_a_disk(
    start: Callable[[str], Shop], printed: guides.Printed
) -> None:
    there_and_back(start("From Convoy on a disk"), printed, is_copied_back=True)


@pytest.mark.printed("migrating.md", "From REX-Ray with disks")
def test_from_rexray_with_disks(
    start: Callable[[str], Shop], printed: guides.Printed
) -> None:
    there_and_back(start("From REX-Ray with disks"), printed, is_copied_back=False)
