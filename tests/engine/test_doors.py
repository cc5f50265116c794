"""Docker's own Create where few options are allowed, and containers of other users."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from tests.support.daemon import MOUNTS, Machine
from tests.support.engine import Engine
from tests.support.guides import Printed
from tests.support.host import wait_until
from tests.support.images import BUSYBOX_IMAGE

pytestmark = pytest.mark.xdist_group("engine-doors")
PROFILES = '[profiles.app]\nmode = "0711"\n'
# The first of the ids that root of a container has outside.
REMAPPED = 231072
ACCOUNTS = f"""
echo dockremap:x:997:997::/:/bin/false >> /etc/passwd
echo dockremap:x:997: >> /etc/group
for file in /etc/subuid /etc/subgid; do echo dockremap:{REMAPPED}:65536 > $file; done
"""


@pytest.fixture(scope="module")
def limited(_requirements: None) -> Iterator[Machine]:
    """Yield a machine whose engine's callers may name a profile, and a size."""
    machine = Machine(allowed_options="profile,size")
    try:
        machine.host.path("/etc/remora/remora.toml").write_text(PROFILES)
        machine.daemon.restart()
        yield machine
    finally:
        machine.close()


def test_docker_tells_which_option_is_not_allowed(limited: Machine) -> None:
    engine = limited.engine
    told = engine.error("volume", "create", "-d", "remora", "-o", "from=db", "mine")
    assert "\n" not in told
    assert "option 'from' may not be given here: allowed_options" in told
    told = engine.error(
        *("run", "--rm", "--network", "none", "--mount"),
        "type=volume,volume-driver=remora,source=mine,target=/v,volume-opt=mode=0777",
        *(BUSYBOX_IMAGE, "true"),
    )
    assert "option 'mode' may not be given here" in told
    assert limited.daemon.cli_json("ls") == []


def test_docker_makes_what_a_profile_says(limited: Machine) -> None:
    engine = limited.engine
    engine.docker("volume", "create", "-d", "remora", "-o", "profile=app", "mine")
    assert engine.shell("mine", "stat -c %a /v") == "711"
    # The engine asks again when a container names it with its driver.
    assert engine.shell("mine", "stat -c %a /v") == "711"
    engine.docker("volume", "rm", "mine")
    engine.shell("plain", "echo x > /v/f")
    engine.docker("volume", "rm", "plain")


def test_a_service_of_swarm_passes_options_to_each_engine(limited: Machine) -> None:
    engine = limited.engine
    engine.docker("swarm", "init", "--advertise-addr", "127.0.0.1")
    try:
        for name, option in (("bad", "mode=0777"), ("good", "profile=app")):
            mount = f"source={name},target=/v,volume-driver=remora,volume-opt={option}"
            engine.docker(
                *("service", "create", "--detach", "--no-resolve-image"),
                *("--restart-max-attempts=1", "--name", name),
                *("--mount", f"type=volume,{mount}", BUSYBOX_IMAGE),
            )
        wait_until(
            lambda: "option 'mode' may not be given here" in tasks(engine, "bad"),
            timeout_s=60,
            what="the task tells why it does not start",
            evidence=lambda: tasks(engine, "bad"),
        )
        wait_until(
            lambda: "Running" in tasks(engine, "good"),
            timeout_s=60,
            what="the other one runs",
            evidence=lambda: tasks(engine, "good"),
        )
        assert [each["name"] for each in limited.daemon.cli_json("ls")] == ["good"]
    finally:
        engine.docker("swarm", "leave", "--force", check=False)


def tasks(engine: Engine, service: str) -> str:
    """Return the states and errors of the tasks of *service*."""
    shown = "{{.CurrentState}} {{.Error}}"
    return engine.out("service", "ps", "--no-trunc", "--format", shown, service)


@pytest.mark.printed("engines.md", "userns-remap")
def test_roots_of_containers_that_are_nobody_outside(
    make_machine: Callable[..., Machine], printed: Printed
) -> None:
    """Their mounts are made for them: nothing on the way there is theirs to enter."""
    machine = make_machine()
    machine.engine.stop()
    machine.host.run(["sh", "-euc", ACCOUNTS])
    remapped = Engine(machine.host)
    remapped.start(extra_args=("--userns-remap=dockremap",))
    remapped.load_busybox()
    remapped.docker(*printed.take("docker volume create").text.split()[1:])
    assert remapped.shell("data", "echo kept > /v/f; stat -c %u /v/f") == "0"
    assert remapped.shell("data", "cat /v/f; cat /proc/self/uid_map").split() == [
        *("kept", "0", str(REMAPPED), "65536"),
    ]
    # Without an owner nobody could write, which doctor says, and what to do.
    assert "Permission denied" in remapped.error(*new_volume("shut"))
    told = f"it maps root of containers to user {REMAPPED} (userns-remap), who cannot"
    assert engine_finding(machine) == ("warning", f"{told} write to a new volume")
    profile = f"[profiles.default]\nuid = {REMAPPED}\ngid = {REMAPPED}\n"
    machine.host.path("/etc/remora/remora.toml").write_text(profile)
    machine.daemon.restart()
    remapped.docker(*new_volume("open"))
    assert engine_finding(machine)[0] == "ok"
    for directory in ("/var/lib/remora", MOUNTS):
        assert machine.host.path(directory).stat().st_mode & 0o777 == 0o700
    remapped.stop()


def new_volume(name: str) -> tuple[str, ...]:
    """Return `docker run` with a new volume where the image has nothing."""
    at = "--volume-driver", "remora", "-v", f"{name}:/not/in/the/image"
    script = "echo x > /not/in/the/image/f"
    return ("run", "--rm", "--network", "none", *at, BUSYBOX_IMAGE, "sh", "-c", script)


def engine_finding(machine: Machine) -> tuple[str, str]:
    """Return what doctor finds of the engine."""
    done = machine.daemon.cli("doctor", "--json", check=False)
    (found,) = [each for each in json.loads(done.stdout) if each["check"] == "engine"]
    return found["verdict"], found["evidence"]
