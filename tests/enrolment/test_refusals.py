"""Machines that cannot become a node, and what their administrator reads."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from plugin import __version__
from plugin.cli.output import print_json
from plugin.config import ClusterConfig, Config
from plugin.enrolment import configuration, survey
from plugin.enrolment.bundle import Bundle
from plugin.enrolment.configuration import NodeFiles
from plugin.enrolment.enroll import (
    ConfiguredError,
    Wish,
    changed_files,
    make_plan,
    require_cluster,
)
from plugin.enrolment.login import Login, connect
from plugin.enrolment.remote import RemoteMachine
from plugin.enrolment.survey import Machine
from plugin.errors import EnrolmentError
from plugin.membership.nodes import machine_id
from tests.enrolment.conftest import Answers
from tests.support.etcd import new_address
from tests.support.ssh_server import SshServer

# What it would copy is of no interest: nothing here comes that far.
BUNDLE = Bundle(BytesIO(b""), "/nowhere", "digest", __version__)
FIT = Machine(
    os="debian",
    os_name="Debian 12",
    host_name="beta",
    machine_id="0123",
    clock_offset_s=0.1,
    systemd=True,
    free_kib=10_000_000,
    missing=(),
    bundle="",
    version="",
    volumes=0,
    active=False,
)


@pytest.fixture
def machine(server: SshServer) -> Iterator[RemoteMachine]:
    login = Login(host=server.address, port=server.port, identity=server.identity)
    machine = connect(login, Answers(trust=True))
    yield machine
    machine.close()


@pytest.fixture
def endpoint() -> Iterator[str]:
    """Yield an endpoint where somebody listens."""
    with socket.create_server((new_address(), 0)) as listener:
        yield "http://{}:{}".format(*listener.getsockname())


def config(*endpoints: str) -> Config:
    return Config(cluster=ClusterConfig(etcd=endpoints))


def told(found: Machine) -> str:
    return "; ".join(survey.faults(found, BUNDLE, own_machine_id="ours"))


def node(name: str, **changes: Any) -> dict[str, Any]:
    return {"name": name, "alive": True, "machine_id": "another", **changes}


def test_a_node_alone_enrols_nobody() -> None:
    with pytest.raises(EnrolmentError, match="remora cluster join"):
        require_cluster(Config())


def test_every_fault_is_told_at_once(machine: RemoteMachine, endpoint: str) -> None:
    """The machine of the tests: its sshd shows no systemd, and it is this one."""
    if not machine_id():
        pytest.skip("needs /etc/machine-id")
    with pytest.raises(EnrolmentError, match="cannot become a node") as refusal:
        make_plan(
            machine,
            Wish(name="alpha"),
            config=config(endpoint),
            bundle=BUNDLE,
            nodes=lambda: [node("alpha", alive=False)],
        )
    line = str(refusal.value)
    assert "systemd does not run it" in line
    assert "it is this machine" in line
    assert "remora node rm alpha" in line
    assert "\n" not in line


def test_what_is_there_is_seen_as_it_is(machine: RemoteMachine) -> None:
    found = survey.look(machine, BUNDLE)
    assert found.machine_id == machine_id()
    assert found.host_name == socket.gethostname()
    assert abs(found.clock_offset_s) < 60
    assert found.free_kib > 0
    assert not found.active
    assert found.version == found.bundle == ""
    for package, program in (("openssh-client", "ssh"), ("rsync", "rsync")):
        if shutil.which(program, path="/usr/bin"):
            assert package not in found.missing


def test_volumes_of_its_own_are_seen_and_not_hidden(
    machine: RemoteMachine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command there is a stand-in; what it prints is as the real one's."""
    print_json([{"name": "a", "options": {"mode": "0755"}}, {"name": "b"}])
    command = tmp_path / "bin/remora"
    command.parent.mkdir()
    listed = capsys.readouterr().out
    command.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo "remora, version 0.0.9"; exit; fi\n'
        f"cat <<'END'\n{listed}END\n"
    )
    command.chmod(0o755)
    there = Bundle(BytesIO(b""), str(tmp_path), "digest", __version__)
    found = survey.look(machine, there)
    assert (found.version, found.volumes) == ("0.0.9", 2)
    files = NodeFiles("[cluster]\n", {})
    blank = "# nothing is set\n"
    with pytest.raises(ConfiguredError, match="2 volumes of its own"):
        changed_files(machine, files, blank, found, force=False)
    changed = changed_files(machine, files, blank, found, force=True)
    assert changed == [configuration.CONFIGURATION]
    member = "[cluster]\netcd = ['http://a:1']\n"
    with pytest.raises(ConfiguredError, match="is another one") as told:
        changed_files(machine, files, member, found, force=False)
    assert "volumes" not in str(told.value)
    assert "-etcd" in told.value.difference


def test_a_fit_machine_has_no_faults() -> None:
    assert told(FIT) == ""
    assert survey.warnings(FIT) == []
    same = replace(FIT, version=__version__, bundle="digest", active=True)
    assert told(same) == ""
    assert told(replace(FIT, os="raspbian debian")) == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"os": "fedora", "os_name": "Fedora 43"}, "it runs Fedora 43"),
        ({"systemd": False}, "managed plugin"),
        ({"machine_id": "ours"}, "systemd-machine-id-setup"),
        ({"free_kib": 100 * 1024}, "100 MiB are free"),
        ({"version": "99.0.0"}, "update this node first"),
    ],
)
def test_each_fault_says_what_to_do(changes: dict[str, Any], words: str) -> None:
    assert words in told(replace(FIT, **changes))


@pytest.mark.parametrize(("offset_s", "way"), [(-100.0, "behind"), (7.0, "ahead of")])
def test_a_clock_far_off_is_a_warning(offset_s: float, way: str) -> None:
    [line] = survey.warnings(replace(FIT, clock_offset_s=offset_s))
    assert f"{abs(offset_s):.0f} s {way}" in line


def test_an_etcd_that_is_not_reached_is_named(
    machine: RemoteMachine, endpoint: str
) -> None:
    nobody = f"http://{new_address()}:9"
    asked = {"machine": machine, "found": FIT, "port": free_port()}
    [line] = survey.python_faults(**asked, endpoints=[nobody])
    assert nobody.removeprefix("http://") in line
    assert "refused" in line
    # One of them is enough.
    assert survey.python_faults(**asked, endpoints=[nobody, endpoint]) == []


def test_a_taken_port_is_a_fault_unless_it_is_ours(
    machine: RemoteMachine, endpoint: str
) -> None:
    with socket.create_server(("", 0)) as listener:
        port = listener.getsockname()[1]
        asked = {"machine": machine, "port": port, "endpoints": [endpoint]}
        [line] = survey.python_faults(**asked, found=FIT)
        assert f"port {port} is taken" in line
        active = replace(FIT, active=True)
        assert survey.python_faults(**asked, found=active) == []


def test_another_processor_or_python_is_refused(
    machine: RemoteMachine, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = "cpython-312-aarch64-linux-gnu"
    monkeypatch.setattr(survey, "abi", lambda: ours)
    [line] = survey.python_faults(machine, FIT, port=free_port(), endpoints=[endpoint])
    assert ours in line
    assert "cpython-311" in line
    assert "packaging/install" in line


def free_port() -> int:
    with socket.create_server(("", 0)) as listener:
        return int(listener.getsockname()[1])
