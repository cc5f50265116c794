"""A pool whose disk hangs: its own volumes wait, everything else is answered."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from plugin.limits import OPERATIONS_MAX
from tests.protocol.node import running
from tests.support.hung_disk import hung

ON_SHARE = {"backend": "nfs", "server": "127.0.0.1", "share": "/none"}


def test_only_its_own_volumes_wait() -> None:
    with running(mount_deadline_s=2) as node:
        names = [f"v{number}" for number in range(OPERATIONS_MAX)]
        for each in names:
            node.create(each)
        refused = node.call("Create", {"Name": "n", "Opts": ON_SHARE}).error
        with hung(node), ThreadPoolExecutor(OPERATIONS_MAX) as engine:
            mounts = [
                engine.submit(node.call, "Mount", {"Name": each, "ID": "one"})
                for each in names
            ]
            assert all("not done in" in each.result().error for each in mounts)
            found = node.get("v0")
            assert found["Name"] == "v0"
            node.ok("Path", Name="v0")
            assert {*node.names()} == {*names}
            storages = node.control("GET", "/v1/status").json()["storages"]
            assert "does not answer" in storages[str(node.pool)]["health"]
            assert node.call("Create", {"Name": "n", "Opts": ON_SHARE}).error == refused
        # Then it gives errors.
        assert node.get("v0")["Name"] == "v0"
