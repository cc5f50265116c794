"""Files are opened so that an NFS server delegates nothing; here without a server."""

from __future__ import annotations

import ast
import fcntl
import os
import subprocess
from pathlib import Path

import pytest

from backends.system import libc, opening
from backends.system.copy_file import FileCopier
from backends.system.opening import Opener
from tests.support.host import REPOSITORY

AGENT = REPOSITORY / "backends/nfs/agent"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the flags of every open(2), and have all filesystems be NFS."""
    flags: list[int] = []
    real = os.open

    def spy(path: str, asked: int, *rest: int, dir_fd: int | None = None) -> int:
        flags.append(asked)
        # Not each filesystem that tests run on knows the flag.
        return real(path, asked & ~os.O_DIRECT, *rest, dir_fd=dir_fd)

    monkeypatch.setattr(opening, "_is_nfs", lambda _: True)
    monkeypatch.setattr(os, "open", spy)
    return flags


def test_on_nfs_no_delegation_is_asked_for(tmp_path: Path, asked: list[int]) -> None:
    opener = Opener(str(tmp_path))
    descriptor = opener.open(str(tmp_path / "file"), os.O_RDWR | os.O_CREAT)
    assert asked[-1] & os.O_DIRECT
    # Reads and writes go through the cache.
    assert not fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT
    os.write(descriptor, b"content")
    os.close(descriptor)
    with os.fdopen(opener.open(str(tmp_path / "file"), os.O_RDONLY), "rb") as file:
        assert file.read() == b"content"
    assert asked[-1] & os.O_DIRECT


def test_elsewhere_the_flag_is_not_used(tmp_path: Path) -> None:
    opener = Opener(str(tmp_path))
    os.close(opener.open(str(tmp_path / "file"), os.O_WRONLY | os.O_CREAT))
    assert opener._extra == 0


@pytest.mark.parametrize("directory", ["/", "/proc", "/dev"])
def test_the_kernel_says_what_filesystem_it_is(directory: str) -> None:
    """That NFS is known by that, tests/lab/test_nfs_delegations.py shows."""
    command = ["stat", "--file-system", "--format=%t", directory]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    descriptor = os.open(directory, os.O_PATH)
    assert libc.filesystem_type(descriptor) == int(told, 16)
    assert not opening._is_nfs(descriptor)
    assert not opening._is_nfs(directory)
    os.close(descriptor)


def test_a_copied_file_is_made_so(tmp_path: Path, asked: list[int]) -> None:
    at = []
    for name in ("source", "target"):
        (tmp_path / name).mkdir()
        at.append(os.open(tmp_path / name, os.O_RDONLY | os.O_DIRECTORY))
    (tmp_path / "source/file").write_text("x")
    asked.clear()
    status = (tmp_path / "source/file").stat()
    assert FileCopier().copy("file", status, source=at[0], target=at[1])
    (made,) = [flags for flags in asked if flags & os.O_CREAT]
    assert made & os.O_DIRECT
    for descriptor in at:
        os.close(descriptor)


def test_the_agent_opens_files_in_no_other_way() -> None:
    """Each would be delegated, and its time be this node's instead of the server's."""
    found = []
    for path in sorted(AGENT.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            # With O_PATH the server is asked for nothing.
            if (
                isinstance(node, ast.Call)
                and is_plain_open(ast.unparse(node.func))
                and "O_PATH" not in ast.unparse(node)
            ):
                found.append(f"{path.name}:{node.lineno}")
    assert found == []


def is_plain_open(called: str) -> bool:
    name = called.rpartition(".")[2]
    return called in {"open", "os.open", "io.open"} or name in {
        *("write_text", "write_bytes", "read_text", "read_bytes", "touch"),
        *("mkstemp", "NamedTemporaryFile", "copyfile", "copy", "copy2"),
    }
