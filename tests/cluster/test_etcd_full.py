"""An etcd that has no space left: what is refused, what goes on, and what is said."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from plugin.membership.endpoints import look
from plugin.store.etcd.settings import EtcdSettings
from tests.cluster.conftest import owners_of
from tests.cluster.test_replication_scenarios import NAME, Make
from tests.protocol.node import wait_until
from tests.support import etcd
from tests.support.guides import Printed
from tests.support.owners import Records

QUOTA_BYTES = 16 * 2**20
VALUE = "x" * 100_000


@pytest.fixture
def small_etcd(tmp_path: Path) -> Iterator[etcd.Cluster]:
    """Yield an etcd of one member with little space."""
    directory = etcd.memory_directory(tmp_path / "etcd")
    with etcd.single(directory, f"--quota-backend-bytes={QUOTA_BYTES}") as cluster:
        yield cluster


def fill(cluster: etcd.Cluster) -> None:
    """Put the same key until etcd raises its alarm."""
    with pytest.raises(AssertionError, match="database space exceeded"):
        for _ in range(2 * QUOTA_BYTES // len(VALUE)):
            cluster.ctl("put", "filler", VALUE)
    assert "NOSPACE" in cluster.ctl("alarm", "list")


def make_room(cluster: etcd.Cluster, printed: Printed) -> None:
    """Do what the guide says, as it is printed there."""
    script = "\n".join(each.text for each in printed.rest())
    environment = {"ETCDCTL_ENDPOINTS": cluster.endpoints[0], "ETCDCTL_API": "3"}
    subprocess.run(
        ["bash", "-euc", script],
        env={**os.environ, **environment},
        check=True,
        timeout=60,
    )


@pytest.mark.printed("cluster.md", "etcd is full")
def test_an_etcd_without_space_is_told_and_volumes_stay_usable(
    small_etcd: etcd.Cluster, printed: Printed
) -> None:
    prefix = f"/{uuid.uuid4()}/"
    records = Records(small_etcd, prefix)
    owners = owners_of(small_etcd, prefix)
    make: Make = next(owners)
    try:
        alpha = make("alpha")
        alpha.create(NAME)
        at = alpha.path(alpha.mount(NAME))
        fill(small_etcd)
        (at / "file").write_text("written while etcd is full")
        error = alpha.refused("Create", Name="other", Opts={})
        assert "database space exceeded" in error, error
        assert "alarm disarm" in error, error
        settings = EtcdSettings(small_etcd.endpoints, prefix=prefix)
        [member] = look(settings).endpoints
        assert member.answers
        assert "the alarm NOSPACE: every write is refused until" in member.fault
        make_room(small_etcd, printed)
        assert look(settings).endpoints[0].fault == ""
        wait_until(
            lambda: not alpha.call("Create", {"Name": "other"}).error,
            "a volume is made again",
            timeout_s=30,
        )
        alpha.ok("Unmount", Name=NAME, ID="one")
        assert (
            (alpha.path(alpha.mount(NAME)) / "file").read_text().startswith("written")
        )
    finally:
        next(owners, None)
        records.close()
