"""
Containers that dockerd could not start for a volume: doctor names them, and with
`start_containers` the daemon starts them; volumes of Docker's own in our place.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plugin.engine import starter
from plugin.engine.engine_api import EngineApi
from plugin.engine.failed_starts import failed_starts
from plugin.engine.starter import ContainerStarter
from tests.support.daemon import Machine
from tests.support.engine import SOCKET
from tests.support.host import wait_until
from tests.support.images import BUSYBOX_IMAGE

ERROR = "its disk is not mounted"
POOL = "/var/lib/remora/pool/pool.json"


def away(machine: Machine) -> Path:
    return machine.host.path(POOL)


def boot_without_pool(machine: Machine) -> None:
    """Start the engine again while the pool's disk is not mounted."""
    machine.engine.stop()
    away(machine).rename(away(machine).with_suffix(".away"))
    machine.engine.start_again()


def mount_pool(machine: Machine) -> None:
    away(machine).with_suffix(".away").rename(away(machine))


def state(machine: Machine, name: str) -> dict[str, Any]:
    found: dict[str, Any] = machine.engine.inspect("container", name)["State"]
    return found


def doctor(machine: Machine) -> list[str]:
    """Return what doctor says of containers and volumes."""
    done = machine.daemon.cli("doctor", check=False)
    lines = done.stdout.splitlines()
    return [each for each in lines if each.split()[1] in ("container", "volume")]


@pytest.fixture
def machine(make_machine: Callable[..., Machine]) -> Machine:
    machine = make_machine(start_containers="true")
    machine.engine.hold("rows", "web", "--restart", "always")
    machine.engine.hold("rows", "unless", "--restart", "unless-stopped")
    machine.engine.hold("rows", "once")
    machine.engine.hold("rows", "stopped", "--restart", "unless-stopped")
    machine.engine.docker("stop", "stopped")
    return machine


def test_they_are_started_when_storage_is_there(machine: Machine) -> None:
    boot_without_pool(machine)
    # One that fails for another reason is Docker's alone.
    machine.engine.docker(
        *("run", "-d", "--network", "none", "--name", "broken", "--restart", "always"),
        *("-v", "rows:/v", BUSYBOX_IMAGE, "no-such-program"),
        check=False,
    )
    for name in ("web", "unless"):
        assert ERROR in state(machine, name)["Error"]
    lines = doctor(machine)
    assert len(lines) == 2
    assert all("Docker does not start it again" in each for each in lines)
    mount_pool(machine)
    for name in ("web", "unless"):
        wait_until(
            lambda name=name: state(machine, name)["Running"],
            timeout_s=20,
            what=f"{name} runs",
        )
    machine.engine.docker("exec", "web", "touch", "/v/row")
    assert not doctor(machine)
    for name in ("once", "stopped", "broken"):
        assert not state(machine, name)["Running"], name
    events = machine.daemon.cli("volume", "events", "rows").stdout
    assert "container-started" in events
    assert "container web" in events
    assert "started a container" in machine.daemon.log.read_text()


def test_one_that_goes_on_failing_is_left_alone(
    make_machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = make_machine()  # it starts none itself
    machine.engine.hold("rows", "web", "--restart", "always")
    boot_without_pool(machine)
    assert "start_containers = true" in doctor(machine)[0]
    engine = EngineApi(machine.host.path(SOCKET), timeout_s=30)
    [failed] = failed_starts(engine, "remora")
    assert (failed.name, failed.policy, failed.volumes) == ("web", "always", ("rows",))
    monkeypatch.setattr(starter, "FIRST_PAUSE_S", 0.0)
    tried: list[str] = []

    class Counting(EngineApi):
        def call(self, method: str, path: str, body: Any = None) -> Any:
            tried.append(path)
            return super().call(method, path, body)

    def turn(starting: ContainerStarter) -> None:
        before = len(tried)
        starting.run_once(engine)
        wait_until(
            lambda: not starting._under_way, timeout_s=20, what="the start has ended"
        )
        assert len(tried) <= before + 1

    silent: set[str] = set()

    def made(*, is_there: bool) -> ContainerStarter:
        return ContainerStarter(
            Counting(machine.host.path(SOCKET), timeout_s=30),
            driver="remora",
            is_there=lambda _: is_there,
            was_silent=silent.__contains__,
            note=lambda each: pytest.fail(f"{each} was not started"),
        )

    turn(made(is_there=False))
    assert not tried
    # One that is being started keeps whoever asks for it waiting.
    starting = made(is_there=True)
    starting._under_way.add(failed.id)
    starting.run_once(Counting(machine.host.path(SOCKET), timeout_s=30))
    assert not [each for each in tried if failed.id in each]
    tried.clear()
    # What does not answer may be there at the next attempt.
    silent.add("rows")
    starting = made(is_there=True)
    for _ in range(2 * starter.ATTEMPTS_MAX):
        turn(starting)
    assert len(tried) == 2 * starter.ATTEMPTS_MAX
    silent.clear()
    tried.clear()
    starting = made(is_there=True)
    for _ in range(3 * starter.ATTEMPTS_MAX):
        turn(starting)
    assert len(tried) == starter.ATTEMPTS_MAX
    # Long after that, too.
    monkeypatch.setattr(starter, "_FORGET_S", 0.0)
    turn(starting)
    assert len(tried) == starter.ATTEMPTS_MAX
    assert not state(machine, "web")["Running"]


def test_a_local_volume_of_our_name_is_told(
    make_machine: Callable[..., Machine],
) -> None:
    machine = make_machine(metrics_address="127.0.0.1:9550")
    machine.engine.docker("volume", "create", "rows")
    machine.engine.docker("volume", "create", "other")
    answer = machine.daemon.control("POST", "/v1/volumes", {"name": "rows"})
    assert answer[0] == 200, answer
    wait_until(
        lambda: (
            "hidden by local volumes: ['rows']" in machine.daemon.cli("status").stdout
        ),
        timeout_s=20,
        what="status tells of it",
    )
    _, metrics = machine.daemon._request(
        "/run/remora/control.sock", "GET", "/metrics", b"", None, 10
    )
    assert b"\nremora_hidden_by_local_volumes 1.0\n" in metrics
    [line] = doctor(machine)
    assert "'local', for the name 'rows'" in line
    machine.engine.docker("volume", "rm", "rows")
    wait_until(lambda: hidden(machine) == "[]", timeout_s=20, what="it has gone")


def hidden(machine: Machine) -> str:
    """Return what `remora status` says of our volumes that Docker does not mean."""
    lines = machine.daemon.cli("status").stdout.splitlines()
    [line] = [each for each in lines if each.startswith("hidden by local volumes:")]
    return line.partition(": ")[2]
