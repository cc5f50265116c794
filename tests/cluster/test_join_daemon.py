"""A real daemon alone, then `remora cluster join`, then the daemon in a cluster."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import uuid
from contextlib import closing

import pytest

from plugin.store.base import Record
from plugin.store.etcd.settings import EtcdSettings
from plugin.store.etcd.store import EtcdStore
from tests.protocol.node import Node, missing
from tests.support import etcd

pytestmark = pytest.mark.xdist_group("etcd-members")


def free_port() -> int:
    with socket.create_server(("", 0)) as found:
        return int(found.getsockname()[1])


def test_a_container_runs_on_through_a_join(server: etcd.Cluster) -> None:
    if lacking := missing() or ("" if shutil.which("sshd") else "sshd"):
        pytest.skip(f"needs {lacking}")
    prefix = f"/{uuid.uuid4()}/"
    with (
        closing(Node(profiles=f"[cluster]\npeer_port = {free_port()}\n")) as node,
        closing(EtcdStore(EtcdSettings(server.endpoints, prefix=prefix))) as store,
    ):
        node.start()
        for name in ("used", "unused"):
            node.ok("Create", Name=name)
        target = node.ok("Mount", Name="used", ID="a")["Mountpoint"]
        node.run("sh", "-c", f"echo precious > {target}/file")
        volume_id = node.ok("Get", Name="used")["Volume"]["Status"]["id"]
        node.stop()
        command = [sys.executable, "-m", "plugin.cli.main", "--config", node.config]
        command += ["cluster", "join", "--etcd", server.endpoints[0]]
        command += ["--prefix", prefix, "--node-name", "one"]
        joined = subprocess.run(command, capture_output=True, timeout=60, check=False)
        assert joined.returncode == 0, joined.stderr
        before = store.get(f"v/{volume_id}/head")
        assert before is not None
        # What runs in a container that has the volume; `sleep` is in its directory.
        writer = node.popen(["sh", "-c", f"cd {target} && exec sleep 600"])
        node.start()

        def lock() -> Record | None:
            return store.get(f"v/{volume_id}/lock")

        etcd.wait_until(lambda: lock() is not None, "the lock")
        assert writer.poll() is None
        # In the same epoch: nobody has come in between.
        after = store.get(f"v/{volume_id}/head")
        assert after is not None
        assert after.value == before.value
        assert node.run("cat", f"{target}/file") == "precious\n"
        writer.kill()
        writer.wait()
        node.ok("Unmount", Name="used", ID="a")
        for name in ("used", "unused"):
            node.ok("Mount", Name=name, ID="b")
            node.ok("Unmount", Name=name, ID="b")
        node.stop()
