"""
What other clients of the engine's API do with our volumes: their calls, replayed.

Each file in `calls` has the calls of one client, in its order, with the status and what
a volume's answer has to say. `compose-2.40.3.jsonl` was recorded between Compose 2.40.3
(Debian sid) and the engine of Debian 12 for a project with two volumes, of which the
engine made one and Remora alone the other the last time. Portainer cannot be had here:
`portainer.jsonl` is written after its public source (2.2x of October 2024: what its
volume and container pages send). `engine-api-1.41.jsonl` is written after the API's
reference: mounts with options of a driver, filters, prune.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.support.daemon import UnixConnection
from tests.support.engine import SOCKET

if TYPE_CHECKING:
    from tests.support.daemon import Machine

pytestmark = pytest.mark.xdist_group("engine-clients")

CALLS: Final = Path(__file__).with_name("calls")
DEADLINE_S: Final = 60.0
STARTED: Final = "shop-database-1"


class Client:
    """One client of the machine's engine."""

    def __init__(self, machine: Machine, file: str) -> None:
        self._socket = machine.host.path(SOCKET)
        lines = (CALLS / f"{file}.jsonl").read_text("utf-8").splitlines()
        self._lines = iter(json.loads(each) for each in lines)
        self._ids: dict[str, str] = {}
        assert "step" in next(self._lines)

    def step(self) -> list[Any]:
        """Make the calls up to the next step; return their answers."""
        answers = []
        for call in self._lines:
            if "step" in call:
                break
            answers.append(self._call(call))
        return answers

    def finish(self) -> None:
        """Make all calls that are left."""
        while self.step():
            pass

    def _call(self, call: dict[str, Any]) -> Any:
        method, path = self._known(call["do"]).split(" ", 1)
        body = self._known(json.dumps(call["body"])) if "body" in call else None
        connection = UnixConnection(self._socket, DEADLINE_S)
        try:
            headers = {"Content-Type": "application/json"} if body else {}
            connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        assert response.status == call["status"], (call["do"], content)
        is_json = (response.getheader("Content-Type") or "").endswith("json")
        answer = json.loads(content) if content and is_json else None
        if "is" in call:
            self._ids[call["is"]] = answer["Id"]
        if "answer" in call:
            assert _volumes(answer) == _volumes(call["answer"]), call["do"]
        return answer

    def _known(self, text: str) -> str:
        for name, found in self._ids.items():
            text = text.replace(f"{{{name}}}", found)
        return text


def _volumes(answer: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Return what an answer says of volumes, without what each run has otherwise."""
    found = answer.get("Volumes", [answer])
    said = ("Name", "Driver", "Scope", "Options", "Labels")
    # An engine has {} or null for none.
    return sorted(tuple(each[key] or None for key in said) for each in found or ())


def test_compose(machine: Machine) -> None:
    client = Client(machine, "compose-2.40.3")
    engine = machine.engine
    client.step()  # up
    assert machine.volume("shop_rows")["options"]["mode"] == "0750"
    engine.docker("exec", STARTED, "sh", "-c", "echo kept > /v/file")
    refused = engine.error("exec", STARTED, "touch", "/site/file")
    assert "Read-only file system" in refused
    client.step()  # ps
    client.step()  # down
    machine.assert_nothing_mounted(within_s=5)
    client.step()  # up
    assert engine.out("exec", STARTED, "cat", "/v/file") == "kept"
    client.step()  # up with another option: it makes the volume anew, by its own -y
    assert engine.error("exec", STARTED, "cat", "/v/file").endswith(
        "No such file or directory"
    )
    assert machine.volume("shop_rows")["options"]["interval"] == "6s"
    client.step()  # volumes
    client.step()  # down --volumes
    assert machine.daemon.call("List", {}) == {"Volumes": []}

    # As if another node had made it: without labels, it is found all the same.
    options = ("-o", "mode=0750", "-o", "interval=5s")
    machine.daemon.cli("create", "shop_rows", *options)
    client.step()  # up
    engine.docker("exec", STARTED, "sh", "-c", "echo again > /v/file")
    client.finish()  # down -v
    machine.assert_nothing_mounted(within_s=5)
    assert machine.daemon.call("List", {}) == {"Volumes": []}


def test_portainer(machine: Machine) -> None:
    client = Client(machine, "portainer")
    _, information, *_ = client.step()
    assert "remora" in information["Plugins"]["Volume"]
    client.step()  # create volume
    told, _ = client.step()  # wrong option
    assert "a volume is as fast as the disk of the pool" in told["message"]
    client.step()  # volumes
    client.step()  # create container
    *_, users, refusal = client.step()  # volume in use
    assert [each["Names"] for each in users] == [["/web"]]
    assert {each["Driver"] for each in users[0]["Mounts"]} == {"remora"}
    assert "volume is in use" in refusal["message"]
    client.finish()
    machine.assert_nothing_mounted(within_s=5)
    assert machine.daemon.call("List", {}) == {"Volumes": []}


def test_the_api_itself(machine: Machine) -> None:
    client = Client(machine, "engine-api-1.41")
    client.step()  # mounts
    assert machine.volume("rows")["options"]["mode"] == "0700"
    (told,) = client.step()  # wrong mount
    assert "write 16GiB if gigabytes are meant" in told["message"]
    client.step()  # filters
    pruned = client.step()  # prune: an engine prunes its own driver's volumes only
    assert not any(each["VolumesDeleted"] for each in pruned[:2])
    client.finish()
    machine.assert_nothing_mounted(within_s=5)
    assert machine.daemon.call("List", {}) == {"Volumes": []}
