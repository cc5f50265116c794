"""Records of other nodes become lines for sshd: nothing in one may become two."""

from __future__ import annotations

import base64
import stat
import uuid
from pathlib import Path
from typing import Any

import pytest

from backends.errors import InvalidRequestError
from plugin.peers.authorization import Authorization
from plugin.peers.peer import Peer, key_blob, plain_key

ID = "0f1b6c2e-1f4b-4c5e-9d0a-5f6c7d8e9fa0"
KEY = f"ssh-ed25519 {base64.b64encode(key_blob(b'k' * 32)).decode()}"
OTHER_KEY = f"ssh-ed25519 {base64.b64encode(key_blob(b'o' * 32)).decode()}"


def peer(**changes: Any) -> Peer:
    fields: dict[str, Any] = {
        "id": str(uuid.uuid4()),
        "name": "a",
        "addresses": ("10.0.0.1", "fe80::1", "node-a.example"),
        "port": 7424,
        "host_key": KEY,
        "public_key": OTHER_KEY,
    }
    return Peer(**{**fields, **changes})


@pytest.mark.parametrize(
    "key",
    [
        "",
        "ssh-ed25519",
        KEY.replace("ed25519", "rsa"),
        f'command="sh" {KEY}',
        f"{KEY[:-8]}",
        KEY + "AAAA",
        KEY.replace(" ", "  "),
        KEY.replace(" ", "\t"),
        f"\n{KEY}",
        KEY.replace("AAAA", "AAA\nA"),
        # The blob of another type, and one with a second string in it.
        "ssh-ed25519 " + base64.b64encode(key_blob(b"k" * 31)).decode(),
        "ssh-ed25519 " + base64.b64encode(key_blob(b"k" * 32) + b"k" * 32).decode(),
        "ssh-ed25519 "
        + base64.b64encode(key_blob(b"k" * 32).replace(b"ed", b"xx")).decode(),
        KEY + " " + "c" * 300,
    ],
)
@pytest.mark.parametrize("field", ["host_key", "public_key"])
def test_only_ed25519_keys_are_keys(field: str, key: str) -> None:
    with pytest.raises(InvalidRequestError, match="no ed25519 public key"):
        peer(**{field: key})


@pytest.mark.parametrize(
    "comment", ["root@host", "a\nssh-ed25519 AAAA", 'b" command="sh']
)
def test_a_comment_goes_no_further(comment: str) -> None:
    assert plain_key(f"{KEY} {comment}") == KEY
    assert peer(public_key=f"{KEY} {comment}").public_key == KEY


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", ""),
        ("id", "a"),
        ("id", ID.upper()),
        ("id", f"{ID}\n"),
        ("id", f"{{{ID}}}"),
        ("addresses", ()),
        ("addresses", ("",)),
        ("addresses", ("10.0.0.1\nx",)),
        ("addresses", ("-oProxyCommand=sh",)),
        ("addresses", ("a b",)),
        ("addresses", ("a,b",)),
        ("addresses", ("fe80::1%eth0 x",)),
        ("addresses", ("*",)),
        ("addresses", ("10.0.0.1",) * 17),
        ("port", 0),
        ("port", 65536),
    ],
)
def test_a_field_without_its_form_is_refused(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError):
        peer(**{field: value})


def test_the_files_hold_the_peers_and_nobody_else(tmp_path: Path) -> None:
    authorization = Authorization(tmp_path, peer_socket=Path('/run/a "b"/peer.sock'))
    first, second = peer(), peer(host_key=OTHER_KEY, public_key=KEY)
    authorization.write([first, second])
    lines = (tmp_path / "authorized_keys").read_text().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith('restrict,command="')
    assert lines[0].endswith(
        f" {first.id}'\"".replace("'", "") + f" {OTHER_KEY} {first.id}"
    )
    assert '/run/a \\"b\\"/peer.sock' in lines[0]
    assert (tmp_path / "known_hosts").read_text() == (
        f"remora-{first.id} {KEY}\nremora-{second.id} {OTHER_KEY}\n"
    )
    for name in ("authorized_keys", "known_hosts"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    authorization.write([second])
    assert first.id not in (tmp_path / "authorized_keys").read_text()
    authorization.write([])
    assert (tmp_path / "authorized_keys").read_bytes() == b""


def test_files_that_would_not_change_are_left_alone(tmp_path: Path) -> None:
    authorization = Authorization(tmp_path, peer_socket=Path("/run/peer.sock"))
    known = peer()
    authorization.write([known])
    before = [each.stat().st_ino for each in sorted(tmp_path.iterdir())]
    authorization.write([known])
    assert [each.stat().st_ino for each in sorted(tmp_path.iterdir())] == before
