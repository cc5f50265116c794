"""The daemon and a Docker Engine in a node, as other tests rely on them."""

from __future__ import annotations

import sys

import pytest

from tests.lab import services
from tests.lab.commands import text_of
from tests.lab.lab import Lab, Topology
from tests.lab.services import Service
from tests.support.host import PYTHON_ENVIRONMENT

TOPOLOGY = Topology.of("alpha")
STUCK = """
import signal, time
def sleep_on():
    while True:
        time.sleep(1)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("sleeps", flush=True)
sleep_on()
"""


class Stuck(Service):
    """A program that does not end at SIGTERM."""

    def _argv(self) -> list[str]:
        return [sys.executable, "-c", STUCK]

    def _env(self) -> dict[str, str]:
        return PYTHON_ENVIRONMENT

    def _ready(self) -> bool:
        return "sleeps" in text_of(self.log)


class Silent(Stuck):
    """One that never answers besides."""

    def _ready(self) -> bool:
        return False


def test_what_does_not_go_on_says_where_it_waits(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = Stuck(lab["alpha"], "stuck")
    stuck.start()
    with pytest.raises(AssertionError, match=r"has not ended .*(?s:.*)in sleep_on"):
        stuck.stop(1)
    assert not stuck.running
    monkeypatch.setattr(services, "START_DEADLINE_S", 5.0)
    silent = Silent(lab["alpha"], "silent")
    with pytest.raises(AssertionError, match=r"silent answers (?s:.*)in sleep_on"):
        silent.start()
    assert not silent.running


def test_a_volumes_bytes_survive_a_power_failure(lab: Lab) -> None:
    alpha = lab["alpha"]
    remora = alpha.start_remora()
    assert remora.call("Create", {"Name": "direct", "Opts": {}}) == {}
    mounted = remora.call("Mount", {"Name": "direct", "ID": "id"})["Mountpoint"]
    assert [each.mount_point for each in alpha.mounts("/var/lib/remora")] == [mounted]
    assert remora.call("Unmount", {"Name": "direct", "ID": "id"}) == {}
    assert '"direct"' in remora.cli("ls", "--json").stdout

    engine = alpha.start_docker()
    assert engine.shell("data", "echo kept > /v/file; sync; cat /v/file") == "kept"
    alpha.power_off()
    assert not remora.running
    assert not engine.running
    alpha.boot()
    remora.start()
    engine.start()
    assert engine.shell("data", "cat /v/file") == "kept"
    assert {each["name"] for each in remora.control("GET", "/v1/volumes")[1]} == {
        "data",
        "direct",
    }
    remora.crash()
    assert remora.stop() == 0
    assert engine.stop() == 0
