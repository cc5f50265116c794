"""Records that a fault has spoilt, or that a newer version wrote, stop nothing else."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from plugin.store.base import Put
from tests.protocol.node import wait_until
from tests.support.owners import WAIT_S, Owner, Records

Make = Callable[..., Owner]
ODD = {
    "name": "odd",
    "backend": "rsync",
    "requested": {},
    "options": {},
    "created_at": "",
    "phase": "creating",
}
GARBAGE = (
    # With no id: the directory of all volumes would be what was begun of it.
    Put("volumes/odd", msgspec.json.encode({**ODD, "id": ""})),
    Put("volumes/0dd", msgspec.json.encode({**ODD, "name": "0dd", "id": "../.."})),
    Put("volumes/spoilt", b"\xff{"),
    Put("volumes/0", b"[" * 10_000),
    Put("v/of-no-volume/head", b"{}}"),
    Put("v/of-no-volume/lock", b""),
    Put("tomb/of-no-volume", b"{"),
    Put("nodes/of-no-node", b"null"),
    Put("alive/of-no-node", b"null"),
)


def test_all_other_volumes_go_on(make_owner: Make, records: Records) -> None:
    alpha, beta = make_owner("alpha"), make_owner("beta")
    spoilt = alpha.create("a-head-is-spoilt", members="alpha,beta")
    good = alpha.create("good", members="alpha,beta", interval="1s")
    left = alpha.create("left-mounted")
    alpha.mount("good")
    alpha.mount("left-mounted")
    alpha.create("of-a-newer-version")
    alpha.mount("of-a-newer-version")
    records.store.transact([], [*GARBAGE, Put(f"v/{spoilt}/head", b'{"epoch": "x"}')])
    for owner in (alpha, beta):
        owner.wait_known("a-head-is-spoilt")
        assert {"good", "left-mounted"} <= {*owner.names()}
    # A start keeps what is mounted, of whatever backend, and syncs go on.
    alpha.kill()
    newer = records.store.get("volumes/of-a-newer-version")
    assert newer is not None
    value = newer.value.replace(b'"backend":"rsync"', b'"backend":"zfs"')
    records.store.transact([], [Put(newer.key, value)])
    alpha.start()
    alpha.wait_member()
    (alpha.path(alpha.mount_dir) / good / "file").write_text("of alpha")
    copied = beta.copy(good) / "live/file"
    wait_until(
        lambda: copied.exists() and copied.read_text() == "of alpha",
        "the member has it",
        timeout_s=WAIT_S,
    )
    # The reconciler ends what is not used any more, on both nodes.
    alpha.unmount("left-mounted")
    alpha.unmount("good")
    beta.wait_known("good", ownership="idle")
    beta.ok("Remove", Name="good")
    wait_until(lambda: not alpha.copy(good).exists(), "its copy goes", timeout_s=WAIT_S)
    beta.ok("Create", Name="new")
    # What was spoilt is there all the same.
    assert "cannot be read" in alpha.refused("Mount", Name="a-head-is-spoilt", ID="one")
    assert "cannot be read" in alpha.refused("Create", Name="spoilt")
    rows = {each["name"]: each for each in alpha.control_ok("GET", "/v1/volumes")}
    assert rows["a-head-is-spoilt"]["health"] == "error"
    assert "cannot be read" in rows["spoilt"]["error"]
    metrics = alpha.control("GET", "/metrics").body.decode()
    assert "remora_unreadable_records 5.0" in metrics
    assert alpha.copy(spoilt).exists()
    assert alpha.copy(left).exists()
    told = [each for each in beta.log_lines() if "volumes/spoilt" in each["event"]]
    assert len(told) == 1
