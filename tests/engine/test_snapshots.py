"""Snapshots and clones of volumes that real containers write to."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.support.host import wait_until
from tests.support.images import BUSYBOX_IMAGE

if TYPE_CHECKING:
    from tests.support.daemon import Daemon
    from tests.support.engine import Engine

pytestmark = pytest.mark.xdist_group("engine-volumes")

FILES = 60
# Each round writes its number into every file, one after the other.
WRITER = f"""
n=0
while :; do
    n=$((n + 1))
    f=1
    while [ $f -le {FILES} ]; do echo $n > /v/$f; f=$((f + 1)); done
done
"""


def test_a_paused_container_is_copied_at_one_moment_and_goes_on(
    engine: Engine, daemon: Daemon
) -> None:
    engine.docker(
        *("run", "--detach", "--name", "writer", "--network", "none"),
        *("--volume-driver", "remora", "-v", "busy:/v"),
        *(BUSYBOX_IMAGE, "sh", "-c", WRITER),
    )
    wait_until(
        lambda: round_of(engine, "busy", str(FILES)) > 0,
        timeout_s=30,
        what="the writer writes",
    )
    for number in range(3):
        daemon.cli("clone", "busy", f"copy{number}", "--pause")
        rounds = [round_of(engine, f"copy{number}", str(f + 1)) for f in range(FILES)]
        # Those before the place where it was stopped are one round ahead; the one at
        # that place may have been emptied and not yet written.
        written = [each for each in rounds if each]
        assert len(written) >= FILES - 1
        assert written == sorted(written, reverse=True)
        assert written[0] - written[-1] in (0, 1)
        assert engine.inspect("container", "writer")["State"]["Status"] == "running"
    before = round_of(engine, "busy", "1")
    wait_until(
        lambda: round_of(engine, "busy", "1") > before,
        timeout_s=30,
        what="the writer goes on",
    )
    said = daemon.cli("clone", "busy@none", "copy", "--pause", check=False)
    assert (said.returncode, said.stderr.partition(":")[0]) == (22, "remora")
    engine.docker("kill", "writer")


def test_a_volume_is_made_from_a_snapshot_by_docker_alone(
    engine: Engine, daemon: Daemon
) -> None:
    engine.shell("db", "echo monday > /v/day")
    daemon.cli("snapshot", "create", "db", "monday")
    engine.shell("db", "echo tuesday > /v/day")
    for _ in range(2):
        engine.docker(
            *("volume", "create", "-d", "remora", "-o", "from=db@monday", "old")
        )
    assert engine.shell("old", "cat /v/day") == "monday"
    said = engine.error("volume", "rm", "db")
    assert "db" in said
    assert "monday" in said
    restored = json.loads(
        daemon.cli("snapshot", "restore", "db", "monday", "--json").stdout
    )
    assert engine.shell("db", "cat /v/day") == "monday"
    for name in ("monday", restored["kept_as"]):
        daemon.cli("snapshot", "rm", "db", name)
    engine.docker("volume", "rm", "db")
    # Its source is gone, and it is asked for again, as Compose does at every `up`.
    engine.docker("volume", "create", "-d", "remora", "-o", "from=db@monday", "old")
    assert engine.shell("old", "cat /v/day") == "monday"


def round_of(engine: Engine, volume: str, file: str) -> int:
    """Return the number in one file of *volume*, 0 while it is just being written."""
    path = engine.inspect("volume", volume)["Status"]["path"]
    found = engine.host.run(["cat", f"{path}/{file}"], check=False)
    return int(found.stdout.strip() or 0)
