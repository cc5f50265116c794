"""The node's keys: made once, whole or not at all."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from backends.system import files
from plugin.errors import StoreError
from plugin.peers.keys import ensure_keys


def test_keys_are_made_once(tmp_path: Path) -> None:
    directory = tmp_path / "state/peer"
    keys = ensure_keys(directory)
    assert ensure_keys(directory) == keys
    assert keys.public_host_key != keys.public_node_key
    assert sorted(each.name for each in directory.iterdir()) == ["host_key", "node_key"]
    for path in directory.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700


def test_the_public_key_is_the_one_that_openssh_sees(tmp_path: Path) -> None:
    keys = ensure_keys(tmp_path / "peer")
    for path, public in (
        (keys.host_key, keys.public_host_key),
        (keys.node_key, keys.public_node_key),
    ):
        shown = subprocess.run(
            ["ssh-keygen", "-y", "-f", str(path)],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        ).stdout
        assert shown.strip() == public


def test_a_crash_while_a_key_is_made_leaves_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "peer"

    def crash(path: Path, content: bytes) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_durably", crash)
        with pytest.raises(KeyboardInterrupt):
            ensure_keys(directory)
    left = {each.name for each in directory.iterdir()}
    assert left == {".new-host_key", ".new-host_key.pub"}
    ensure_keys(directory)
    assert {each.name for each in directory.iterdir()} == {"host_key", "node_key"}


def test_a_mode_that_ssh_would_refuse_is_mended(tmp_path: Path) -> None:
    keys = ensure_keys(tmp_path / "peer")
    keys.node_key.chmod(0o644)
    assert ensure_keys(tmp_path / "peer") == keys
    assert keys.node_key.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", ["empty", "cut", "rsa", "encrypted"])
def test_a_key_of_another_kind_is_never_replaced(tmp_path: Path, kind: str) -> None:
    directory = tmp_path / "peer"
    path = ensure_keys(directory).host_key
    if kind == "empty":
        path.write_text("")
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:60])
    else:
        path.unlink()
        options = ["-t", "rsa", "-N", ""] if kind == "rsa" else ["-N", "secret"]
        if kind == "encrypted":
            options += ["-t", "ed25519"]
        subprocess.run(
            ["ssh-keygen", "-q", *options, "-f", str(path)], check=True, timeout=60
        )
        path.with_suffix(".pub").unlink()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="host_key is no plain ed25519 key"):
        ensure_keys(directory)
    assert path.read_bytes() == before
