"""Lines of mount options as people write them: understood, left out, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.errors import InvalidRequestError
from backends.nfs import options
from backends.nfs.options import DEFAULTS
from tests.support.spellings import Spelling, spellings
from tests.unit.test_nfs_options import resolver

SERVER = "10.77.0.1"
ROWS = spellings()


def canonical(spelling: Spelling) -> str:
    """Return the canonical options in the words of the table."""
    try:
        found = options.parse_options(spelling.options(SERVER))
        options.require_complete(found)
    except InvalidRequestError as error:
        return f"refused: {str(error).removeprefix('invalid-request: ')}"
    assert options.parse_options(found) == found
    expected = {"mountMode": "direct", "server": SERVER, "share": "/export/xfs"}
    shown = [f"{k}={v}" for k, v in found.items() if expected.get(k) != v]
    return " ".join(shown) or "-"


def test_the_table_has_enough_rows() -> None:
    assert len(ROWS) >= 150
    # What the built-in driver mounts is mounted here, if it is NFS and without `..`.
    for row in ROWS:
        if row.local == "mounts" and not row.is_mounted:
            assert row.type != "nfs" or ".." in row.device, row


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.device} {row.line}")
def test_what_people_write_is_understood_or_refused_with_a_reason(
    row: Spelling,
) -> None:
    assert canonical(row) == row.ours.removeprefix("cannot: ")


def test_what_means_nothing_here_is_told_and_makes_no_other_volume() -> None:
    with_it = {"device": "nas:/x", "o": "bg,soft,x-systemd.automount"}
    one = resolver().resolve(with_it)
    other = resolver().resolve({"device": "nas:/x", "o": "soft"})
    assert one.requested == other.requested
    told = options.warnings_of(one.options)
    assert told[0] == "soft: a server that is slow or away loses writes silently"
    assert told[1].startswith("bg: was ignored, the daemon mounts when ")
    assert told[2:] == ["x-systemd.automount: was ignored, it is for a line of fstab"]


@pytest.mark.parametrize(
    ("given_options", "server"),
    [
        ({"device": "other:/x", "o": "addr=nas"}, "nas"),
        ({"device": ":/x", "o": "addr=[fd00::1]"}, "fd00::1"),
        ({"device": ":/x", "o": "addr=fd00::1%eth0"}, "fd00::1%eth0"),
        ({"device": ":/x", "server": "nas", "o": "rw"}, "nas"),
        ({"device": "[fd00::1]:/x"}, "fd00::1"),
        ({"share": "nas:/x"}, "nas"),
        ({"share": "/x", "o": "addr=nas"}, "nas"),
    ],
)
def test_the_address_of_a_line_is_the_server(
    given_options: dict[str, str], server: str
) -> None:
    parsed = options.parse_options(given_options)
    assert (parsed["server"], parsed["share"]) == (server, "/x")


def test_two_servers_contradict_each_other() -> None:
    with pytest.raises(InvalidRequestError, match="'addr=a' and option 'server=b'"):
        options.parse_options({"server": "b", "share": "/x", "o": "addr=a"})


def test_lines_of_several_options_are_one() -> None:
    parsed = options.parse_options({"o": "soft", "nfsopts": "timeo=5", "nconnect": "2"})
    assert parsed["mountOptions"] == "nconnect=2,soft,timeo=5"


def test_a_label_with_commas_stays_whole() -> None:
    label = 'context="system_u:object_r:container_file_t:s0:c1,c2"'
    parsed = options.parse_options({"server": "nas", "share": "/x", "o": f"{label},ro"})
    assert parsed["mountOptions"] == label
    merged = options.merge_options({**DEFAULTS, **parsed}, {"mountOptions": "soft"})
    assert merged["mountOptions"] == f"{label},soft"


@pytest.mark.parametrize("has_selinux", [True, False])
def test_labels_are_for_machines_with_selinux(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_selinux: bool
) -> None:
    """As for mount(8): without SELinux the kernel would refuse them."""
    place = tmp_path if has_selinux else tmp_path / "missing"
    monkeypatch.setattr(options, "_SELINUX", place)
    entries = options.usable_entries("context=a:b:c:s0,soft")
    assert entries == (["context=a:b:c:s0"] if has_selinux else []) + ["soft"]
