"""A pool whose disk is dead is given up by its name, and another one made."""

from __future__ import annotations

import subprocess
import uuid
from pathlib import Path

from plugin.daemon.node import pool_id_of
from tests.pool.machine import SIZE, Machine, ran
from tests.protocol import client


def call(machine: Machine, action: str, **body: str) -> client.Answer:
    request = client.engine_request(f"VolumeDriver.{action}", client.go_json(body))
    return client.parse(client.exchange(machine.sockets / "plugin.sock", request))


def test_only_what_is_gone_is_given_up(machine: Machine, used: str) -> None:
    told = machine.refused("7d0e", verb="forget")
    assert "7d0e is not this node's pool: this node's pool is 7d0f" in told
    assert "holds a pool" in machine.refused("7d0f", verb="forget")
    (machine.pool / "pool.json").unlink()
    # A container still has a volume.
    volume_id = str(uuid.uuid4())
    (live := machine.disk / "dead/volumes" / volume_id / "live").mkdir(parents=True)
    (mounted := machine.state_dir / "mounts" / volume_id).mkdir(parents=True)
    subprocess.run(["mount", "--bind", live, mounted], check=True, timeout=10)
    told = machine.refused("7d0f", verb="forget")
    assert f"a volume of it is mounted: {mounted}" in told
    subprocess.run(["umount", mounted], check=True, timeout=10)
    ran(machine.remora("pool", "forget", "7d0f"), check=True)
    assert pool_id_of(machine.state_dir) is None
    assert "it has none" in machine.refused("7d0f", verb="forget")


def test_the_next_pool_takes_its_place(machine: Machine, device: Path) -> None:
    """Nothing begins empty: who wants a volume that is lost has to remove it."""
    machine.made("--device", device, "--yes")
    with machine.serving():
        assert not call(machine, "Create", Name="data").error
        assert not call(machine, "Mount", Name="data", ID="one").error
        assert not call(machine, "Unmount", Name="data", ID="one").error
    machine.unmount()
    dead = pool_id_of(machine.state_dir)
    wanted = ("--file", machine.image, "--size", SIZE)
    told = machine.refused(*wanted)
    assert f"pool {dead} is not at {machine.pool}" in told
    assert "docs/guides/operations.md" in told
    ran(machine.remora("pool", "forget", str(dead)), check=True)
    machine.made(*wanted)
    assert pool_id_of(machine.state_dir) not in {None, dead}
    with machine.serving():
        told = call(machine, "Mount", Name="data", ID="one").error
        assert "the data of volume 'data' is missing on this node" in told
        assert not call(machine, "Remove", Name="data").error
        assert not call(machine, "Create", Name="data").error
        assert not call(machine, "Mount", Name="data", ID="one").error
        assert not call(machine, "Unmount", Name="data", ID="one").error
