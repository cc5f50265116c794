"""Commits of pools on XFS are of one moment while containers write, unless told not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.test_replication_btrfs import wait_published
from tests.support.copies import wait_same
from tests.support.namespaces import enter_private_mounts, loop_filesystem
from tests.support.owners import Owner, Records, Writer
from tests.support.pausing import control_group

NAME = "data"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    enter_private_mounts()
    with loop_filesystem(tmp_path_factory.mktemp("disk"), "xfs", size="1G") as disk:
        yield disk


@pytest.fixture
def group() -> Iterator[Path]:
    with control_group() as group:
        yield group


def test_containers_are_paused_for_commits(
    disk: Path, group: Path, make_owner: Callable[..., Owner], records: Records
) -> None:
    pool = disk / "alpha"
    alpha = make_owner("alpha", start=False, daemon={"pool": str(pool)})
    alpha.pool = pool
    alpha.start()
    alpha.wait_member()
    beta = make_owner("beta")
    volume_id = alpha.create(NAME, interval="1s")
    beta.wait_known(NAME)
    writer = Writer(alpha, alpha.mount_at_last(NAME))
    (group / "cgroup.procs").write_text(str(writer.process.pid))
    wait_published(records, volume_id, "snapshot")
    before = writer.stamps()
    status = alpha.get(NAME)["Status"]
    assert status["quality"] == "snapshot"
    assert status["pauses"]["count"] > 0
    assert status["pauses"]["missed"] == ""
    metrics = alpha.control("GET", "/metrics").body.decode()
    assert f'remora_pause_seconds{{quantile="0.99",volume="{NAME}"}}' in metrics
    # Who commits dies with somebody frozen, maybe; the writer writes on.
    alpha.kill()
    writer.wait_writing()
    assert writer.stamps()[: len(before)] == before
    alpha.start()
    alpha.wait_member()
    writer.end()
    wait_same(alpha, beta, volume_id)
    alpha.unmount(NAME)
    wait_published(records, volume_id, "quiesced")
