"""The daemon and a Docker Engine in a node, as other tests rely on them."""

from __future__ import annotations

from tests.lab.lab import Lab, Topology

TOPOLOGY = Topology.of("alpha")


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
