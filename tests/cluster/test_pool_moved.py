"""A node's volumes are moved into a new pool, as docs/guides/install.md says."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.protocol.node import wait_until
from tests.support.copies import live, wait_same
from tests.support.host import REPOSITORY
from tests.support.journal_trees import make_everything, shape
from tests.support.namespaces import enter_private_mounts, loop_filesystem
from tests.support.owners import WAIT_S, Owner, Records

GUIDE = (REPOSITORY / "docs/guides/install.md").read_text()
[SECTION] = re.findall(
    r"\n### Moving volumes into a new pool\n(.*?)\n### ", GUIDE, re.DOTALL
)
COMMANDS = re.findall(r"^# (.*)$", SECTION, re.MULTILINE)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Return a new pool on btrfs, as `remora pool make` mounts it."""
    enter_private_mounts()
    with loop_filesystem(tmp_path, "btrfs") as disk:
        yield disk


def move(owner: Owner, target: Path) -> None:
    """Do on the node what the guide says after the pool was made."""
    owner.stop()
    copying = [each for each in COMMANDS if not re.match("systemctl|remora", each)]
    script = "\n".join(copying)
    script = script.replace("/var/lib/remora/pool", str(owner.pool))
    script = script.replace("/srv/remora", str(target))
    subprocess.run(["sh", "-euc", script], check=True, timeout=WAIT_S)
    # Nothing is to be found where it was.
    owner.pool.rename(owner.pool.with_name("old"))
    text = owner.config.read_text()
    owner.config.write_text(text.replace(str(owner.pool), str(target)))
    owner.pool = target
    owner.start()
    owner.wait_member()


def test_an_owner_and_a_member_go_on_from_the_new_pool(
    disk: Path, make_owner: Callable[..., Owner], records: Records
) -> None:
    assert COMMANDS[0] == "systemctl stop remora.socket remora.service"
    assert len(COMMANDS) == 5
    alpha, beta = make_owner("alpha"), make_owner("beta")
    volume_id = alpha.create("data", interval="1s")
    beta.wait_known("data")
    alpha.mount_at_last("data")
    make_everything(live(alpha, volume_id))
    alpha.unmount("data")
    wait_same(alpha, beta, volume_id)
    before = shape(live(alpha, volume_id))
    for owner, name in ((alpha, "a"), (beta, "b")):
        move(owner, disk / name)
        assert shape(live(owner, volume_id)) == before
    alpha.mount_at_last("data")
    (live(alpha, volume_id) / "more").write_text("written to the new pool")
    # Of one moment now, because the volume's directory is a subvolume.
    wait_until(
        lambda: (
            records.head(volume_id).quality == "snapshot"
            and len(records.head(volume_id).holders) == 2
        ),
        "a commit is a snapshot",
        timeout_s=WAIT_S,
    )
    wait_same(alpha, beta, volume_id)
    alpha.unmount("data")
    beta.mount_at_last("data")
    assert (live(beta, volume_id) / "more").read_text() == "written to the new pool"
    beta.unmount("data")
