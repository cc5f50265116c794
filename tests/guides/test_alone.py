"""README.md and the guides for one machine, on a machine that Remora was never on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.guides import steps
from tests.support.guide_site import CHECKOUT, OFFLINE, GuideMachine, Site
from tests.support.guides import Printed, changed
from tests.support.images import BUSYBOX_IMAGE

POOL = "/var/lib/remora/pool"
# Disks, and places, that the machine has.
PLACES = {
    "/srv/pool.img": "/var/lib/docker/pool.img",
    "--size 50G": "--size 512M",
}
# What the guide calls a pool, and what one is called.
NAMED, UUID = "3b0c…", r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"


@pytest.mark.printed("install.md", "Install and start")
def test_it_is_installed(site: Site, printed: Printed) -> None:
    steps.install(site, printed)
    for path in ("/usr/bin/remora", "/etc/remora/remora.toml"):
        assert site["alpha"].shell(f"ls {path}").strip() == path
    # An environment in the checkout is for those who work on it.
    assert ".venv" not in site["alpha"].shell(f"ls -A {CHECKOUT}").split()


@pytest.mark.printed("README.md", "Try it")
def test_a_checkout_runs(site: Site, printed: Printed) -> None:
    """On a machine of its own, on which nothing of it is left."""
    gamma = site["gamma"]
    make = printed.take().text
    unit = f"systemd-run --unit trial --working-directory={CHECKOUT}"
    packages = " ".join(f"--setenv={each}" for each in OFFLINE.split())
    gamma.shell(f"{unit} {packages} {make}")
    try:
        steps.until(
            gamma,
            "docker volume create -d remora data",
            lambda told: told == "data\n",
        )
    finally:
        gamma.shell("docker volume rm data; systemctl stop trial")
        gamma.shell("rm -rf /var/lib/remora")


@pytest.mark.printed("install.md", "Configure")
def test_a_configuration_is_checked(alpha: GuideMachine, printed: Printed) -> None:
    for each in printed.rest():
        alpha.type(each)


@contextmanager
def disk(machine: GuideMachine, name: str) -> Iterator[None]:
    """Let *machine* have a disk *name*; afterwards until nothing has it mounted."""
    file = f"/var/lib/docker/{Path(name).name}"
    machine.shell(
        f"set -e; truncate --size 1G {file}; loop=$(losetup --show --find {file});"
        f"mknod {name} b 7 ${{loop#/dev/loop}}"
    )
    try:
        yield
    finally:
        machine.shell(
            f"losetup --noheadings -O NAME -j {file} | xargs -r losetup --detach"
        )


@pytest.mark.printed("install.md", "A pool on XFS or btrfs")
@pytest.mark.printed("operations.md", "A pool's disk is dead")
def test_pools_are_made_and_given_up(alpha: GuideMachine, printed: Printed) -> None:
    """In a file, then on a disk, then on another one: each time all is new."""
    stop = printed.take("systemctl stop")
    device, start = printed.take("remora pool make"), printed.take("systemctl start")
    file = printed.take("remora pool make --file")
    alpha.type(stop)
    alpha.shell(changed(file.text, PLACES))
    assert alpha.out("findmnt", "-n", "-o", "FSTYPE", POOL) == "btrfs"
    alpha.type(start)

    # What the guide says of undoing it.
    alpha.type(stop)
    alpha.shell(f"umount {POOL}")
    alpha.shell(
        "cd /etc/systemd/system; rm var-lib-remora-pool.mount "
        "remora-pool-direct.service remora.service.d/pool.conf; systemctl daemon-reload"
    )
    give_up(alpha, f"remora pool forget {NAMED}")

    with disk(alpha, "/dev/sdb"):
        alpha.type(device, answers="y\n")
    alpha.type(start)
    assert alpha.out("findmnt", "-n", "-o", "FSTYPE", POOL) == "btrfs"

    alpha.type(printed.take("systemctl stop"))
    alpha.type(printed.take("umount"))
    give_up(alpha, printed.take("remora pool forget").text)
    with disk(alpha, "/dev/sdc"):
        alpha.type(printed.take("remora pool make --device"), answers="y\n")
    alpha.type(printed.take("systemctl start"))
    assert alpha.out("findmnt", "-n", "-o", "FSTYPE", POOL) == "xfs"


def give_up(machine: GuideMachine, command: str) -> None:
    """Do *command* with the name that it tells where it is given another one."""
    told = machine.shell(command, check=False)
    [pool] = re.findall(UUID, told)
    machine.shell(command.replace(NAMED, pool))


@pytest.mark.printed("engines.md", "Docker, by the socket")
def test_the_engine_finds_it(alpha: GuideMachine, printed: Printed) -> None:
    for each in printed.rest():
        alpha.type(each)
    assert "remora" in alpha.shell("docker volume ls --filter name=data")
    alpha.shell("docker volume rm data")


@pytest.mark.printed("install.md", "Without systemd")
def test_without_systemd(alpha: GuideMachine, printed: Printed) -> None:
    """Started and stopped as the guide says another init has to."""
    alpha.shell("systemctl stop remora.socket remora.service")
    for each in printed.rest():
        alpha.type(each)
    steps.until(
        alpha,
        "ls /run/docker/plugins/remora.sock",
        lambda told: told == "/run/docker/plugins/remora.sock\n",
    )
    alpha.shell("docker volume create -d remora data")
    alpha.shell("docker run --rm -v data:/d busybox touch /d/file")
    alpha.shell("docker volume rm data")
    alpha.shell("pkill --full --signal TERM 'remora serve'")
    steps.until(alpha, "pgrep --full 'remora serve'", lambda told: told == "")
    alpha.shell("systemctl start remora.socket remora.service")


@pytest.mark.printed("install.md", "Moving volumes into a new pool")
def test_volumes_are_moved_into_a_new_pool(
    alpha: GuideMachine, printed: Printed
) -> None:
    """In one shell, as its commands are about a directory."""
    alpha.shell("docker volume create -d remora data")
    run = "docker run --rm -v data:/d busybox"
    alpha.shell(f"{run} sh -c 'echo kept > /d/f'")
    script = "\n".join(each.text for each in printed.rest())
    places = {**PLACES, "/srv/pool.img": "/var/lib/docker/moved.img"}
    alpha.shell(f"set -e; {changed(script, places)}")
    line = 'pool = "/srv/remora"'
    alpha.shell(f"sed -i 's|^#pool = .*|{line}|' /etc/remora/remora.toml")
    assert line in alpha.shell("cat /etc/remora/remora.toml")
    alpha.shell(f"rm -rf {POOL}/*; systemctl start remora.socket remora.service")
    assert alpha.shell(f"{run} cat /d/f") == "kept\n"
    alpha.shell("docker volume rm data")


@pytest.mark.printed("README.md", "Remora")
def test_a_volume_keeps_what_is_written(alpha: GuideMachine, printed: Printed) -> None:
    for each in printed.rest():
        assert alpha.type(each).splitlines() == [*each.shown]


@pytest.mark.printed("README.md", "Snapshots and clones")
def test_a_volume_is_copied(alpha: GuideMachine, printed: Printed) -> None:
    alpha.shell("docker volume create -d remora rows")
    alpha.shell("docker run --rm -v rows:/d busybox sh -c 'echo before > /d/file'")
    for each in printed.rest():
        told = alpha.type(each)
        assert all(line in told for line in each.shown)
    look = "docker run --rm -v test-rows:/d busybox cat /d/file"
    assert alpha.shell(look) == "before\n"
    shown = alpha.shell("remora snapshot ls rows --json")
    for snapshot in json.loads(shown):
        alpha.shell(f"remora snapshot rm rows {snapshot['name']}")


@pytest.mark.printed("README.md", "Take over an existing volume")
def test_a_volume_is_taken_over(alpha: GuideMachine, printed: Printed) -> None:
    alpha.shell(f"docker tag {BUSYBOX_IMAGE} mariadb; docker volume rm rows")
    alpha.shell("docker run -d --name database -v rows:/var/lib/mysql mariadb")
    alpha.shell("docker exec database sh -c 'echo kept > /var/lib/mysql/file'")
    for each in printed.rest():
        alpha.type(each)
    assert alpha.shell("docker exec database cat /var/lib/mysql/file") == "kept\n"
    assert "remora" in alpha.shell("docker volume ls --filter name=rows")
    alpha.shell("docker rm -f database; docker volume rm rows")


@pytest.mark.printed("operations.md", "The power fails everywhere")
def test_docker_waits_for_storage(alpha: GuideMachine, printed: Printed) -> None:
    for each in printed.rest():
        alpha.type(each)
    assert "remora wait" in alpha.shell("systemctl show -p ExecStartPre docker")
    alpha.shell("docker volume create -d remora data; systemctl restart docker")
    assert alpha.shell("docker volume ls -q -f driver=remora")
