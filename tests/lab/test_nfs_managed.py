"""NFS volumes of the managed plugin, in an engine on a real kernel."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.lab import Lab
from tests.lab.nfs import XFS, NfsServer
from tests.lab.nfs_cluster import empty
from tests.lab.services import Engine
from tests.support import managed
from tests.support.images import BUSYBOX_IMAGE

pytestmark = pytest.mark.long


@pytest.fixture
def engine(shared_lab: Lab, nfs_server: NfsServer) -> Iterator[Engine]:
    """Yield an engine with the managed plugin enabled, and nothing else of ours."""
    if missing := managed.missing():
        pytest.skip(f"needs {missing}")
    alpha = shared_lab["alpha"]
    # Not below /tmp, of which a node has one of its own.
    built = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="remora-managed-"))
    engine = None
    try:
        managed.build(built / "plugin")
        engine = alpha.start_docker()
        engine.load_busybox()
        alpha.run("mkdir -p /var/lib/remora")
        engine.docker("plugin", "create", "remora", str(built / "plugin"))
        engine.docker("plugin", "enable", "--timeout", "30", "remora")
        yield engine
    finally:
        shutil.rmtree(built)
        if engine is not None:
            engine.docker("plugin", "disable", "--force", "remora", check=False)
            engine.stop()
        empty(nfs_server)


def test_a_volume_on_nfs_outlives_its_container_and_the_plugin(
    engine: Engine, nfs_server: NfsServer
) -> None:
    options = [
        *("-o", f"server={nfs_server.ipv4}", "-o", f"share={XFS}"),
        *("-o", "onDelete=delete"),
    ]
    engine.docker("volume", "create", "-d", "remora", *options, "vol")
    run = ("run", "--rm", "--network", "none", "-v", "vol:/v", BUSYBOX_IMAGE)
    engine.docker(*run, "sh", "-c", "echo precious > /v/file")
    assert nfs_server.run(["cat", nfs_server.local(f"{XFS}/vol/file")]) == "precious\n"
    engine.docker("plugin", "disable", "--force", "remora")
    engine.docker("plugin", "enable", "--timeout", "30", "remora")
    assert engine.out(*run, "cat", "/v/file") == "precious"
    status = engine.out("volume", "inspect", "-f", "{{json .Status}}", "vol")
    assert '"health":"ok"' in status
    engine.docker("volume", "rm", "vol")
    assert nfs_server.run(f"ls {nfs_server.local(XFS)}") == ""
