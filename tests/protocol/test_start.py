"""What keeps a daemon from starting: one line, its exit code, and nothing changed."""

from __future__ import annotations

import json
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.protocol.node import Node

pytestmark = pytest.mark.xdist_group("protocol-start")

INVALID, STORE, BACKEND, CONFIG = 10, 13, 15, 17


def refusal(node: Node, exit_code: int, **environment: str) -> str:
    """Return the one line with which a daemon of *node* refuses to start."""
    code, said = node.refused_start(environment)
    assert code == exit_code, said
    assert said.count("\n") == 1, said
    assert said.startswith("remora: ")
    return said.rstrip("\n")


def make_stopped(node: Node) -> Node:
    """Return *node* after it has run; it has a volume `kept`."""
    node.start()
    node.create("kept")
    assert node.stop() == 0
    return node


@pytest.fixture
def stopped(make_node: Callable[..., Node]) -> Node:
    """Return a node of the test's own that has run, with a volume `kept`."""
    return make_stopped(make_node())


@pytest.fixture(scope="module")
def shared_stopped(_requirements: None) -> Iterator[Node]:
    """Return a node as `stopped`, for tests that give its files back as they were."""
    node = Node()
    try:
        yield make_stopped(node)
        node.start()
        assert node.names() == ["kept"]
    finally:
        node.close()


@contextmanager
def damaged(path: Path, damage: Callable[[Path], object]) -> Iterator[None]:
    """Let *damage* change the database *path*, and give it back as it was."""
    before = path.read_bytes()
    damage(path)
    yield
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    path.write_bytes(before)


def test_a_second_daemon_on_the_same_state(node: Node, tmp_path: Path) -> None:
    said = refusal(node, STORE)
    assert f"another remora daemon uses {node.state_dir}" in said
    # Also with sockets of its own: the state is what must not be shared.
    said = refusal(
        node,
        STORE,
        REMORA_PLUGIN_SOCKET=str(tmp_path / "p"),
        REMORA_CONTROL_SOCKET=str(tmp_path / "c"),
    )
    assert "another remora daemon" in said
    assert node.names() == []


@pytest.mark.parametrize("taken", ["plugin_socket", "control_socket"])
def test_a_second_daemon_on_the_same_socket(node: Node, taken: str) -> None:
    other = node.directory / f"other-{taken}"
    other.mkdir()
    environment = {
        "REMORA_STATE_DIR": str(other),
        "REMORA_POOL": str(other / "pool"),
        "REMORA_MOUNT_DIR": str(other / "mounts"),
        "REMORA_PLUGIN_SOCKET": str(other / "p"),
        "REMORA_CONTROL_SOCKET": str(other / "c"),
    }
    del environment[f"REMORA_{taken.upper()}"]
    said = refusal(node, CONFIG, **environment)
    path = getattr(node, taken)
    assert f"another process listens at {path}" in said
    assert path.is_socket()
    assert node.names() == []
    # A daemon that did not start leaves no socket that nobody answers.
    assert not [each for each in other.iterdir() if each.is_socket()]


def test_a_file_where_the_socket_should_be(make_node: Callable[..., Node]) -> None:
    node = make_node()
    node.control_socket.write_text("precious")
    assert "exists and is not a socket" in refusal(node, CONFIG)
    assert node.control_socket.read_text() == "precious"


def test_a_socket_of_somebody_else_is_left_alone(
    make_node: Callable[..., Node],
) -> None:
    node = make_node()
    node.plugin_socket.parent.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(node.plugin_socket))
        other.listen()
        assert "another process listens" in refusal(node, CONFIG)
        assert node.plugin_socket.is_socket()


@pytest.mark.parametrize(("name", "known"), [("store.db", 1), ("node.db", 2)])
def test_records_of_a_newer_version(
    shared_stopped: Node, name: str, known: int
) -> None:
    def raise_version(path: Path) -> None:
        database = sqlite3.connect(path)
        database.execute("PRAGMA user_version = 99")
        database.commit()
        database.close()

    path = shared_stopped.state_dir / name
    with damaged(path, raise_version):
        written = path.read_bytes()
        said = refusal(shared_stopped, STORE)
        assert f"{path} has schema 99; this Remora knows up to {known}" in said
        assert path.read_bytes() == written


@pytest.mark.parametrize("name", ["store.db", "node.db"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"no database at all" * 1000),
        lambda path: path.write_bytes(path.read_bytes()[:4096] + b"\x07" * 20_000),
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
    ],
    ids=["not one", "overwritten", "cut off"],
)
def test_damaged_records(
    shared_stopped: Node, name: str, damage: Callable[[Path], object]
) -> None:
    path = shared_stopped.state_dir / name
    with damaged(path, damage):
        said = refusal(shared_stopped, STORE)
        assert said.startswith("remora: store-unavailable: ")
        assert str(path) in said
        assert "restore it from a backup" in said


def test_a_full_disk_keeps_no_daemon_from_starting(
    make_node: Callable[..., Node],
) -> None:
    """Containers fill it, and are to be guarded and served all the same."""
    node = make_node()
    node.state_dir.mkdir(exist_ok=True)
    node.run("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(node.state_dir))
    node.start()
    node.create("db")
    point = Path(node.ok("Mount", Name="db", ID="a")["Mountpoint"])
    fill = ["sh", "-c", f"cat /dev/zero >> {point}/big"]
    # What an orderly stop makes free, the container takes.
    assert node.stop() == 0
    node.popen(fill).wait(30)
    node.start()
    assert node.references("db") == (0, 1)
    assert "cannot record" in node.refused("Mount", Name="db", ID="b")
    node.path(point / "big").unlink()
    node.ok("Mount", Name="db", ID="b")
    node.popen(fill).wait(30)
    node.kill()
    node.start()
    assert node.references("db") == (0, 2)


def test_a_lost_store_is_made_again_from_the_pool(stopped: Node) -> None:
    for path in stopped.state_dir.glob("store.db*"):
        path.unlink()
    stopped.start()
    assert stopped.names() == []
    report = stopped.control("POST", "/v1/repair", {}).json()
    assert report["adopted"] == ["kept"]
    assert stopped.names() == ["kept"]


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"state_dir": "relative"}, "state_dir: must be an absolute path"),
        ({"control_socket": "/" + "x" * 107}, "control_socket: 108 bytes"),
    ],
)
def test_faults_of_the_configuration(
    make_node: Callable[..., Node], setting: dict[str, object], told: str
) -> None:
    said = refusal(make_node(**setting), CONFIG)
    assert said.startswith("remora: config: 1 fault in ")
    assert told in said


def test_a_profile_that_the_backend_refuses(make_node: Callable[..., Node]) -> None:
    node = make_node(profiles='[profiles.fast]\nmode = "rwx"\nsise = "1"')
    said = refusal(node, CONFIG)
    assert "[profiles.fast] option 'mode': must be octal permissions" in said
    assert not node.plugin_socket.exists()


def test_a_metrics_port_that_is_taken(make_node: Callable[..., Node]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        node = make_node(metrics_address=address)
        said = refusal(node, CONFIG)
    assert f"cannot listen at {address}: Address already in use" in said
    # No socket may be left: the engine would try the dead one for 15 s.
    assert not node.plugin_socket.exists()
    assert not node.control_socket.exists()


def test_a_state_directory_that_cannot_be_made(make_node: Callable[..., Node]) -> None:
    node = make_node()
    node.state_dir.write_text("a file")
    assert f"cannot use {node.state_dir}" in refusal(node, CONFIG)


def test_a_pool_of_another_node(make_node: Callable[..., Node], stopped: Node) -> None:
    file = stopped.path(stopped.pool / "pool.json")
    before = file.read_bytes()
    file.write_bytes(json.dumps({"id": "another"}).encode())
    # The daemon answers, so that Docker keeps what it knows; it changes nothing.
    stopped.start()
    assert stopped.names() == ["kept"]
    error = stopped.refused("Mount", Name="kept", ID="a")
    assert "holds pool another" in error
    assert stopped.refused("Create", Name="new")
    status = stopped.control("GET", "/v1/status").json()
    (storage,) = status["storages"].values()
    assert "holds pool another" in storage["health"]
    file.write_bytes(before)
    stopped.ok("Mount", Name="kept", ID="a")
