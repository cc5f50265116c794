"""
`remora import` and the daemon's half of it, with real directories and real rsync.

tests/engine takes volumes over from a real engine. The engine here is a stand-in that
gives the answers a real one cannot be made to give.
"""

from __future__ import annotations

import gc
import json
import os
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from tests.protocol.command import Cli, caller
from tests.protocol.node import UNSHARE, Node, running

pytestmark = [
    pytest.mark.xdist_group("unit-cli"),
    # Elsewhere a call of main() is a process, whose end closes its sockets.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with running() as found:
        yield found


@pytest.fixture
def cli(
    node: Node, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Cli]:
    """Return a function that calls the command as a shell does."""
    yield caller(node, monkeypatch, capsys)
    for name in node.names():
        node.ok("Remove", Name=name)
    gc.collect()  # here, where unclosed sockets are expected


@pytest.fixture
def source(node: Node) -> Iterator[Path]:
    """Return a directory with one file of each kind that a copy can lose."""
    found = node.directory / "source"
    (found / "sub").mkdir(parents=True)
    (found / "file").write_text("bytes\n")
    os.chown(found / "file", 1234, 5678)
    (found / "file").chmod(0o4711)
    os.link(found / "file", found / "hard link")
    (found / "soft link").symlink_to("/nonexistent")
    os.mkfifo(found / "fifo")
    with (found / "sparse").open("wb") as file:
        file.truncate(10 * 2**20)
    os.setxattr(found / "sub", "user.remark", b"kept")
    for each in found.iterdir():
        # Within a second of now rsync takes any time for the same.
        os.utime(each, (1, 1_000_000_000.5), follow_symlinks=False)
    yield found
    subprocess.run(["rm", "-rf", found], check=True)


class Engine:
    """An HTTP server on a Unix socket that answers with what it was given."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, Any]] = {}
        self.calls: list[str] = []

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        call = f"{handler.command} {handler.path}"
        self.calls.append(call)
        status, body = self.answers.get(call, (404, {"message": "no such volume"}))
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)


@contextmanager
def serving(path: Path) -> Iterator[Engine]:
    engine = Engine()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            engine.answer(self)

        do_DELETE = do_GET  # noqa: N815 - the name that the server calls
        do_POST = do_GET  # noqa: N815

        def address_string(self) -> str:
            return "unix"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    class Server(socketserver.ThreadingUnixStreamServer):
        def handle_error(self, *_: object) -> None:
            """Take a client that hangs up as it is, and print nothing."""

    with Server(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield engine
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def engine(cli: Cli, node: Node, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    path = node.directory / "docker.sock"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    with serving(path) as found:
        yield found
    path.unlink()


def local(source: Path) -> tuple[int, Any]:
    return 200, {"Driver": "local", "Mountpoint": str(source), "Options": None}


def tree(directory: Path) -> str:
    """Return a line of facts for everything in *directory*."""
    done = subprocess.run(
        ["find", ".", "-mindepth", "1", "-printf", r"%P %y %m %U %G %n %l %s %T@\n"],
        cwd=directory,
        capture_output=True,
        check=True,
        text=True,
    )
    return "\n".join(sorted(done.stdout.splitlines()))


def test_everything_that_a_file_has_is_taken_over(
    cli: Cli, node: Node, engine: Engine, source: Path
) -> None:
    engine.answers["GET /volumes/old"] = local(source)
    made = cli("import", "old", "--name", "new", "--json").json()
    assert made["name"] == "new"
    live = Path(made["path"])
    assert tree(live) == tree(source)
    assert len(tree(live).splitlines()) == 6
    assert (live / "file").stat().st_ino == (live / "hard link").stat().st_ino
    assert (live / "sparse").stat().st_blocks < 100
    assert os.getxattr(live / "sub", "user.remark") == b"kept"
    assert (live / "file").stat().st_mode & 0o7777 == 0o4711
    assert (source / "file").read_text() == "bytes\n"
    assert engine.calls == ["GET /volumes/old"]
    assert node.names() == ["new"]


def test_the_same_name_needs_the_local_volume_to_go(
    cli: Cli, node: Node, engine: Engine, source: Path
) -> None:
    engine.answers["GET /volumes/old"] = local(source)
    done = cli("import", "old")
    assert (done.code, done.out.splitlines()[-1]) == (0, "old")
    assert "docker volume rm old" in done.err
    node.ok("Remove", Name="old")
    engine.answers["DELETE /volumes/old"] = (204, b"")
    done = cli("import", "old", "--remove-source")
    assert (done.code, done.err) == (0, "")
    assert engine.calls[-1] == "DELETE /volumes/old"


def test_a_directory_is_taken_over(
    cli: Cli, node: Node, engine: Engine, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where another plugin's disk is mounted; the engine is not asked."""
    made = cli("import", str(source), "--name", "new", "-o", "mode=0700", "--json")
    assert tree(Path(made.json()["path"])) == tree(source)
    monkeypatch.chdir(source.parent)
    assert cli("import", f"./{source.name}", "--name", "again").out == "again\n"
    assert engine.calls == []
    for wrong in ((), ("--name", "x", "--remove-source")):
        done = cli("import", str(source), *wrong)
        assert (done.code, "a directory stays where it is" in done.err) == (2, True)
    assert node.names() == ["again", "new"]


def test_a_local_volume_that_stays_is_told_of(
    cli: Cli, node: Node, engine: Engine, source: Path
) -> None:
    engine.answers["GET /volumes/old"] = local(source)
    engine.answers["DELETE /volumes/old"] = (409, {"message": "volume is in use"})
    done = cli("import", "old", "--remove-source", "--json")
    assert done.code == 20
    assert done.error == "engine: volume is in use"
    assert node.names() == ["old"]


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (404, {"message": "no such volume: old"}, "engine: no such volume: old"),
        (500, {"message": "two\nlines"}, "engine: two\\nlines"),
        (500, b"<html>", "engine: the Docker Engine does not answer"),
        (200, {"Driver": "remora"}, "engine: volume 'old' belongs to driver remora"),
        (
            200,
            {"Driver": "local", "Mountpoint": "/x", "Options": {"type": "nfs"}},
            (
                "engine: volume 'old' has mount options, so its bytes lie elsewhere "
                "(hint: mount that storage, and: remora import DIRECTORY --name old)"
            ),
        ),
    ],
)
def test_volumes_that_cannot_be_taken_over(
    cli: Cli, node: Node, engine: Engine, status: int, body: Any, told: str
) -> None:
    engine.answers["GET /volumes/old"] = (status, body)
    done = cli("import", "old")
    assert done.code == 20
    assert done.error.startswith(told)
    assert node.names() == []


def test_without_an_engine_of_this_machine(cli: Cli, tmp_path: Path) -> None:
    done = cli("import", "old", DOCKER_HOST=f"unix://{tmp_path}/none.sock")
    assert (done.code, done.error.partition(":")[0]) == (20, "engine")
    done = cli("import", "old", DOCKER_HOST="tcp://127.0.0.1:2375")
    assert done.code == 20
    assert "DOCKER_HOST is tcp://127.0.0.1:2375" in done.error


def refused(node: Node, **body: object) -> dict[str, Any]:
    answer = node.control("POST", "/v1/import", body)
    assert answer.status != 200
    return answer.json()["error"]


def test_what_is_refused_leaves_no_volume(cli: Cli, node: Node, source: Path) -> None:
    def code(name: str, path: object, **options: str) -> str:
        error = refused(node, name=name, source=str(path), options=options)
        return str(error["code"])

    assert code("a/b", source) == "invalid-request"
    assert code("x", source, sise="1") == "invalid-request"
    assert code("x", source / "file") == "invalid-request"
    assert code("x", source / "none") == "invalid-request"
    assert code("x", source.name) == "invalid-request"
    assert code("x", f"{source}/../source") == "invalid-request"
    assert node.names() == []
    assert node.stored() == []
    node.create("taken")
    assert code("taken", source) == "volume-exists"
    assert node.names() == ["taken"]


def test_only_the_bytes_that_are_meant_are_taken(
    cli: Cli, node: Node, source: Path
) -> None:
    """Neither where others' links lead, nor a part, nor what was not mounted."""
    link = source.parent / "link"
    link.symlink_to(source)
    for path in (link, link / "sub"):
        error = refused(node, name="x", source=str(path), options={})
        assert error["hint"] == f"name {path.resolve()} instead"
    link.unlink()
    node.run("mount", "-t", "tmpfs", "disk", str(source / "sub"))
    try:
        error = refused(node, name="x", source=str(source), options={})
        assert f"{source}/sub is another filesystem" in error["cause"]
    finally:
        node.run("umount", str(source / "sub"))
    (source / "empty").mkdir()
    done = cli("import", str(source / "empty"), "--name", "x")
    assert (done.code, "is empty: is the disk mounted there?" in done.err) == (2, True)
    assert node.names() == []


def test_a_copy_does_not_copy_itself(cli: Cli, node: Node) -> None:
    """It did so until the disk was full."""
    node.create("other")
    for path in (node.directory, node.pool / "volumes"):
        error = refused(node, name="x", source=str(path), options={})
        assert "the copy would hold itself" in error["cause"]
    assert node.names() == ["other"]
    assert len(node.stored()) == 1


def test_a_volume_of_an_engine_whose_directory_is_a_link_is_taken(
    cli: Cli, node: Node, engine: Engine, source: Path
) -> None:
    docker = node.directory / "docker"
    docker.symlink_to(source.parent)
    engine.answers["GET /volumes/old"] = local(docker / source.name)
    assert cli("import", "old", "--name", "new").out == "new\n"
    docker.unlink()


def test_what_a_container_uses_is_not_copied(
    cli: Cli, node: Node, source: Path
) -> None:
    """A copy of files that change meanwhile would be torn."""
    script = 'mount --bind "$1" /mnt && echo in && read -r _'
    user = subprocess.Popen(
        node.inside(*UNSHARE, "sh", "-c", script, "sh", str(source)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert user.stdout.readline() == b"in\n"
        error = refused(node, name="x", source=str(source), options={})
        assert error["code"] == "volume-busy"
        assert f"sh (pid {user.pid}) at /mnt" in error["cause"]
    finally:
        user.kill()
        user.wait(timeout=10)
        user.stdin.close()
        user.stdout.close()
    assert node.stored() == []


def test_a_disk_is_taken_over_where_it_is_mounted(
    cli: Cli, node: Node, source: Path
) -> None:
    """As another plugin's; where it is mounted elsewhere, too, somebody may use it."""
    node.run("mount", "-t", "tmpfs", "disk", "/mnt")
    try:
        node.run("cp", str(source / "file"), "/mnt/file")
        made = cli("import", "/mnt", "--name", "new", "--json").json()
        assert Path(made["path"], "file").read_text() == "bytes\n"
        node.run("mount", "--bind", "/mnt", str(source / "sub"))
        error = refused(node, name="x", source="/mnt", options={})
        assert (error["code"], f"at {source}/sub" in error["cause"]) == (
            "volume-busy",
            True,
        )
        node.run("umount", str(source / "sub"))
    finally:
        node.run("umount", "/mnt")


def test_a_copy_that_does_not_fit_leaves_no_volume(cli: Cli, source: Path) -> None:
    (source / "big").write_bytes(b"x" * 80 * 2**20)
    with running(disk=True) as small:
        error = refused(small, name="x", source=str(source), options={})
        assert error["code"] == "backend-failed"
        assert "No space left on device" in error["cause"]
        assert small.names() == []
        assert small.stored() == []
        assert small.create("x")
