"""
What two owners that did not know of each other have written: nothing of it is lost.

Alpha is cut off with a tail that nobody got, beta goes on, alpha comes back. See also
`tests/fault/test_crash_points_apart.py`.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from plugin.ownership import rules
from tests.protocol.command import Cli, caller
from tests.protocol.node import wait_until
from tests.support.owners import WAIT_S, Owner, Records

Make = Callable[..., Owner]
NAME = "db"


class Split:
    """Two nodes, of which alpha's daemon is dead and has written more than beta."""

    def __init__(self, make_owner: Make, records: Records, cli: Cli) -> None:
        self.alpha, self.beta = make_owner("alpha"), make_owner("beta")
        self.records = records
        self._cli = cli
        self.volume_id = self.alpha.create(NAME, interval="1s")
        self.beta.wait_known(NAME)
        self.alpha.mount(NAME)
        self.write(self.alpha, "common", "both")
        wait_until(
            lambda: (
                len(records.head(self.volume_id).holders) == 2
                and (self.beta.copy(self.volume_id) / "live/common").exists()
            ),
            "both have it",
            timeout_s=WAIT_S,
        )
        self.alpha_id = self.alpha.id
        self.alpha.kill()
        self.write(self.alpha, "tail", "of alpha")
        self.beta.mount_at_last(NAME)
        self.write(self.beta, "common", "beta")

    def write(self, owner: Owner, name: str, text: str) -> None:
        (owner.copy(self.volume_id) / "live" / name).write_text(text)

    def cli(self, owner: Owner, *arguments: str) -> object:
        """Call `remora quarantine` on a node."""
        return self._cli("quarantine", *arguments, REMORA_CONFIG=str(owner.config))

    def come_back(self) -> None:
        """Start alpha's daemon; its engine has found the container ended."""
        self.alpha.start()
        self.alpha.wait_member()
        self.alpha.call("Unmount", {"Name": NAME, "ID": "one"})

    def commit(self) -> str:
        """Return what alpha has set apart, once beta knows it."""
        found: list[str] = []

        def known() -> bool:
            apart = self.beta.control_ok("GET", "/v1/quarantine")
            found[:] = [each["commit"] for each in apart]
            return bool(found)

        wait_until(known, "beta knows what alpha has set apart", timeout_s=WAIT_S)
        [commit] = found
        return commit

    def wait_caught_up(self) -> None:
        file = self.alpha.copy(self.volume_id) / "live/common"
        wait_until(
            lambda: file.exists() and file.read_text() == "beta",
            "alpha has beta's bytes",
            timeout_s=WAIT_S,
        )


@pytest.fixture
def split(
    make_owner: Make,
    records: Records,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    server: object,
) -> Split:
    del server
    alone = make_owner("gamma", start=False)  # whose configuration is never used
    return Split(make_owner, records, caller(alone, monkeypatch, capsys))


pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


def test_a_split_brain_is_healed_step_by_step(split: Split, tmp_path: Path) -> None:
    alpha, beta = split.alpha, split.beta
    split.come_back()
    commit = split.commit()
    split.wait_caught_up()
    for owner in (alpha, beta):
        [row] = split.cli(owner, "ls", NAME, "--json").json()
        assert (row["node"], row["this_node"]) == ("alpha", owner is alpha)
        assert (row["files"], row["size_bytes"], row["whole"]) == (2, 12, True)
        wait_until(
            lambda each=owner: each.get(NAME)["Status"].get("set_apart_on"),
            "Docker is told",
        )
    done = split.cli(beta, "diff", NAME, commit)
    assert done.code == 14
    assert f"of '{NAME}' was set apart on node 'alpha'" in done.error
    assert f"there: remora quarantine diff {NAME} {commit}" in done.error
    assert split.cli(beta, "discard", NAME, commit, "--force").code == 14
    done = split.cli(alpha, "diff", NAME, commit)
    assert "added    file       tail\n" in done.out
    assert "changed  file       common" in done.out
    target = tmp_path / "apart.tar"
    assert split.cli(alpha, "export", NAME, commit, "-o", str(target)).code == 0
    with tarfile.open(target) as archive:
        assert archive.extractfile("./tail").read() == b"of alpha"
    assert split.cli(alpha, "clone", NAME, commit, "old").code == 0
    path = Path(alpha.get("old")["Status"]["path"])
    assert (path / "tail").read_text() == "of alpha"
    # The volume stays as long as alpha's bytes do, on every node.
    beta.unmount(NAME)
    refused = beta.refused("Remove", Name=NAME)
    assert "on node 'alpha' that no other copy has" in refused
    assert f"remora quarantine discard {NAME} {commit}" in refused
    assert "no other copy has" in alpha.refused("Remove", Name=NAME)
    assert beta.get(NAME)["Status"]["phase"] == "ready"
    assert split.cli(alpha, "discard", NAME, commit, "--force").code == 0
    wait_until(
        lambda: not beta.control_ok("GET", "/v1/quarantine"),
        "beta knows that it has gone",
        timeout_s=WAIT_S,
    )
    beta.ok("Remove", Name=NAME)


def test_a_crash_between_the_renaming_and_its_record_is_mended(split: Split) -> None:
    """The daemon died when the bytes had been moved and nothing was written yet."""
    alpha = split.alpha
    sealed = str(rules.seal(alpha.replica(split.volume_id)).commit)
    home = alpha.copy(split.volume_id)
    tree = home / "quarantine" / sealed
    alpha.run("umount", str(alpha.mount_dir / split.volume_id))
    tree.parent.mkdir(mode=0o700)
    (home / "live").rename(tree)
    split.come_back()
    assert split.commit() == sealed
    split.wait_caught_up()
    assert (tree / "tail").read_text() == "of alpha"
    assert not (home / "live/tail").exists()


def test_a_node_that_has_such_bytes_is_not_removed_by_accident(split: Split) -> None:
    alpha, beta = split.alpha, split.beta
    split.come_back()
    commit = split.commit()
    split.wait_caught_up()
    alpha.kill()
    beta.unmount(NAME)

    def refused() -> str:
        return beta.control_refused("DELETE", "/v1/nodes/alpha")

    wait_until(lambda: "is alive" not in refused(), "alpha's lease ends", timeout_s=60)
    assert "data that no other node has" in refused()
    beta.control_ok("DELETE", "/v1/nodes/alpha?force=1")
    assert beta.control_ok("GET", "/v1/quarantine") == []
    assert split.records.quarantine_records.all() == []
    beta.ok("Remove", Name=NAME)
    # It comes back all the same. Then its bytes outlive the volume, known by its id.
    alpha.start()
    alpha.wait_member()
    assert split.commit() == commit
    alpha.wait_unknown(NAME)
    [row] = split.cli(beta, "ls", "--json").json()
    assert (row["volume"], row["removed"], row["node"]) == (NAME, True, "alpha")
    assert row["volume_id"] == split.volume_id
    beta.create(NAME)
    assert split.cli(beta, "ls", NAME, "--json").json() == []
    assert split.cli(alpha, "clone", split.volume_id, commit, "saved").out == "saved\n"
    path = Path(alpha.get("saved")["Status"]["path"])
    assert (path / "tail").read_text() == "of alpha"
    assert split.cli(alpha, "discard", split.volume_id, commit, "--force").code == 0
    wait_until(
        lambda: not alpha.copy(split.volume_id).exists(),
        "alpha's copy goes, as the tomb asks",
        timeout_s=WAIT_S,
    )
