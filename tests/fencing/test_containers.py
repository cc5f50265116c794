"""Containers of a real Docker Engine: frozen as a whole, thawed, killed."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fencing import machine
from tests.fencing.world import (
    FENCED_WITHIN_S,
    FORK,
    WAIT_S,
    WRITE,
    Daemon,
    Volume,
    kill_guard,
    new_id,
)
from tests.support import engine as engine_support
from tests.support.engine import Engine, started_engine
from tests.support.host import Host, wait_until
from tests.support.images import BUSYBOX_IMAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# One engine for the module.
pytestmark = pytest.mark.xdist_group("fencing-engine")
SCRIPTS = {"writing": WRITE, "forking": FORK}
HOLD_S = 1.0


@pytest.fixture(scope="module")
def only_engine() -> Iterator[Engine]:
    if missing := engine_support.missing():
        pytest.skip(f"needs {missing}")
    with Host("fencing") as host:
        engine = started_engine(host)
        yield engine
        engine.stop()


@pytest.fixture
def engine(only_engine: Engine) -> Iterator[Engine]:
    yield only_engine
    only_engine.remove_everything()


@pytest.fixture
def start(engine: Engine) -> Iterator[Callable[..., Daemon]]:
    """Return a function that starts a daemon, whose guard ends with the test."""
    daemons: list[Daemon] = []
    run_dir = f"/run/{new_id()}"

    def start(**arguments: bool) -> Daemon:
        daemons.append(machine.start_daemon(engine.host, run_dir, **arguments))
        return daemons[-1]

    yield start
    for daemon in daemons:
        daemon.end()
        engine.host.forget(daemon.process)
    kill_guard(Path(run_dir))


@pytest.fixture
def volume(engine: Engine) -> Volume:
    return machine.make_volume(engine.host)


def run(engine: Engine, volume: Volume, script: str, *options: str) -> str:
    """Start a container that runs *script* on *volume*; return its id."""
    words = ["--network", "none", "-v", f"{volume.target}:/v", *options]
    words += [BUSYBOX_IMAGE, "sh", "-c", script, "sh", "/v/stamps"]
    container = engine.out("run", "-d", *words)
    volume.wait_writing()
    return container


def freeze_at_deadline(daemon: Daemon, volume: Volume) -> None:
    held = volume.held(HOLD_S)
    daemon.hold(held)
    daemon.wait_state(volume, "frozen")
    volume.assert_quiet_since(held.deadline_s + FENCED_WITHIN_S)


def state(engine: Engine, container: str) -> dict:
    return engine.inspect("container", container)["State"]


@pytest.mark.parametrize("freezer", [True, False])
@pytest.mark.parametrize("script", SCRIPTS)
def test_frozen_and_thawed(
    start: Callable[..., Daemon],
    engine: Engine,
    volume: Volume,
    script: str,
    freezer: bool,
) -> None:
    daemon = start(freezer=freezer)
    container = run(engine, volume, SCRIPTS[script])
    other = machine.make_volume(engine.host)
    run(engine, other, WRITE)
    freeze_at_deadline(daemon, volume)
    other.wait_writing()
    assert (f"/{container}" in daemon.guard_log()) == freezer
    daemon.hold(volume.held(600))
    volume.wait_writing()
    assert engine.out("exec", container, "echo", "well") == "well"
    engine.docker("rm", "-f", container)


@pytest.mark.parametrize("freezer", [True, False])
@pytest.mark.parametrize("script", SCRIPTS)
def test_killed(
    start: Callable[..., Daemon],
    engine: Engine,
    volume: Volume,
    script: str,
    freezer: bool,
) -> None:
    daemon = start(freezer=freezer)
    container = run(engine, volume, SCRIPTS[script])
    other = machine.make_volume(engine.host)
    run(engine, other, WRITE)
    freeze_at_deadline(daemon, volume)
    written = volume.stamps()
    daemon.ask("kill", id=volume.id)
    daemon.wait_state(volume, "killed")
    wait_until(
        lambda: not state(engine, container)["Running"],
        timeout_s=WAIT_S,
        what="the engine notices",
    )
    assert state(engine, container)["ExitCode"] == 137
    assert volume.stamps() == written
    other.wait_writing()
    engine.docker("rm", container)


def test_two_containers_of_one_volume(
    start: Callable[..., Daemon], engine: Engine, volume: Volume
) -> None:
    daemon = start()
    run(engine, volume, WRITE)
    run(engine, volume, WRITE, "--pid", "host", "-v", f"{volume.target}/:/again")
    freeze_at_deadline(daemon, volume)
    daemon.hold(volume.held(600))
    volume.wait_writing()


def test_exec_waits_for_the_thaw(
    start: Callable[..., Daemon], engine: Engine, volume: Volume
) -> None:
    daemon = start()
    container = run(engine, volume, WRITE)
    freeze_at_deadline(daemon, volume)
    late = subprocess.Popen(
        [engine_support.CLI, "exec", container, "touch", "/v/late"],
        env=engine.cli_environment,
    )
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            late.wait(timeout=2)
        assert not (volume.live / "late").exists()
        daemon.hold(volume.held(600))
        assert late.wait(timeout=WAIT_S) == 0
        assert (volume.live / "late").exists()
    finally:
        late.kill()
        late.wait(timeout=WAIT_S)


def test_a_container_that_shows_the_whole_machine_is_a_bystander(
    start: Callable[..., Daemon], engine: Engine, volume: Volume
) -> None:
    """It has the daemon's mount point, as everything that sees the host's files."""
    daemon = start()
    run(engine, volume, WRITE)
    other = machine.make_volume(engine.host)
    run(engine, other, WRITE, "-v", "/var/lib/remora:/host:rslave")
    freeze_at_deadline(daemon, volume)
    other.wait_writing()
    daemon.hold(volume.held(600))
    volume.wait_writing()
