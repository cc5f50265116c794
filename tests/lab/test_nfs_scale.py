"""NFS volumes in numbers: many mounted at once, many made by two nodes at once."""

from __future__ import annotations

import concurrent.futures
import json
import statistics
from collections.abc import Iterator

import pytest

from tests.lab.lab import Lab
from tests.lab.nfs import XFS, NfsServer
from tests.lab.nfs_calls import Answer, Call, call_inside
from tests.lab.nfs_cluster import MOUNTS, NfsNode, empty, running
from tests.support.host import wait_until

# A mount and its end take a second of a node's one processor, whoever makes them.
MOUNTED, MOUNTED_LONG = 40, 200
WORK_DEADLINE_S = 400.0
# Beside those of both nodes: 200 volumes, and 500.
OWN, OWN_LONG = 50, 230
CONTENDED = 20
DIRECTORIES = 10
THREADS = 3
READ_LIMIT_MS = 1000.0
DISCOVERY_S = 90.0


@pytest.fixture
def nodes(shared_lab: Lab, nfs_server: NfsServer) -> Iterator[tuple[NfsNode, NfsNode]]:
    """Yield the daemons on two nodes; afterwards the server's shares are empty."""
    with running(shared_lab, nfs_server, "alpha", "beta") as (alpha, beta):
        yield alpha, beta
    empty(nfs_server)


@pytest.mark.parametrize(
    "count", [MOUNTED, pytest.param(MOUNTED_LONG, marks=pytest.mark.long)]
)
def test_many_volumes_are_mounted_at_once_and_each_has_its_own_bytes(
    nodes: tuple[NfsNode, NfsNode], nfs_server: NfsServer, count: int
) -> None:
    alpha, _ = nodes
    names = [f"v{number:03}" for number in range(count)]
    told = _succeed(alpha, [[_create(alpha, name)] for name in names])
    assert all(answers[0].body == {} for answers in told)

    told = _succeed(alpha, [[("Mount", {"Name": n, "ID": "id"})] for n in names])
    points = {
        name: str(answers[0].body["Mountpoint"])
        for name, answers in zip(names, told, strict=True)
    }
    assert sorted(alpha.mounted()) == sorted(points.values())
    sources = {each.source for each in alpha.node.mounts(MOUNTS)}
    assert sources == {f"{nfs_server.ipv4}:{XFS}/{name}" for name in names}
    writes = [f"echo {name} > {point}/file" for name, point in points.items()]
    script = "\n".join([*writes, "sync"]).encode()
    alpha.node.run(["sh", "-eu"], stdin=script, timeout_s=60)
    assert _bytes_on_server(nfs_server) == {name: name for name in names}

    reads: list[Call] = [("List", {}), ("Get", {"Name": names[-7]})] * 10
    (answers,) = call_inside(alpha.node, [reads], threads=1)
    assert [v["Name"] for v in answers[0].body["Volumes"]] == names
    assert statistics.median(each.took_ms for each in answers[0::2]) < READ_LIMIT_MS
    assert statistics.median(each.took_ms for each in answers[1::2]) < READ_LIMIT_MS

    _succeed(alpha, [[("Unmount", {"Name": n, "ID": "id"})] for n in names])
    assert alpha.mounted() == []
    assert alpha.node.out(["ls", "-A", MOUNTS]) == ""
    assert _files(nfs_server, "leases", "new") == []
    assert _bytes_on_server(nfs_server) == {name: name for name in names}


@pytest.mark.parametrize("own", [OWN, pytest.param(OWN_LONG, marks=pytest.mark.long)])
def test_two_nodes_make_and_remove_hundreds_of_volumes_at_once(
    nodes: tuple[NfsNode, NfsNode], nfs_server: NfsServer, own: int
) -> None:
    alpha, beta = nodes
    work = [(node, _chains(node, own)) for node in nodes]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        told = list(pool.map(lambda each: _tell(*each), work))
    live, kept = _expected(*told)
    # Both remove the same ones, in the same moments.
    gone = [f"both{number:02}" for number in range(0, CONTENDED, 2)]
    removals: list[list[Call]] = [[("Remove", {"Name": name})] for name in gone]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda node: _succeed(node, removals), nodes))
    live -= set(gone)
    kept |= set(gone)

    assert _catalogue(nfs_server) == dict.fromkeys(live, "ready")
    directories = nfs_server.run(["ls", nfs_server.local(XFS)]).split()
    assert set(directories) == {_directory(name) for name in live} | kept
    assert _files(nfs_server, "claims") == sorted(_claims(nfs_server, live))
    assert _files(nfs_server, "leases", "new") == []
    for node in nodes:
        _await_names(node, live)
    assert alpha.node.mounts(MOUNTS) == beta.node.mounts(MOUNTS) == []


def _await_names(node: NfsNode, live: set[str]) -> None:
    """Return when the node lists exactly the volumes *live*."""
    wait_until(
        lambda: set(node.names()) == live,
        timeout_s=DISCOVERY_S,
        interval_s=1,
        what=f"{node.node.name} lists what there is",
        evidence=lambda: sorted(set(node.names()) ^ live)[:20],
    )


def _create(node: NfsNode, name: str, **options: str) -> Call:
    given = {"server": node.server.ipv4, "share": XFS, **options}
    return "Create", {"Name": name, "Opts": given}


def _succeed(node: NfsNode, chains: list[list[Call]]) -> list[list[Answer]]:
    """Make the calls in *node*; each has to succeed."""
    told = call_inside(node.node, chains, threads=THREADS, timeout_s=WORK_DEADLINE_S)
    errors = [each.body for chain in told for each in chain if each.body.get("Err")]
    assert errors == [], errors[:5]
    return told


def _chains(node: NfsNode, own: int) -> list[list[Call]]:
    """
    Return what one node does; chains go side by side.

    Of its own volumes the node deletes each fifth and retains the directory of each
    seventh. The `both` ones are made by both nodes, and of each two with one directory
    one node makes the one, the other node the other.
    """
    who = node.node.name
    chains = []
    for number in range(own):
        name = f"{who}{number:03}"
        on_delete = "delete" if number % 5 == 0 else "retain"
        chain = [_create(node, name, onDelete=on_delete)]
        if number % 5 == 0 or number % 7 == 0:
            chain.append(("Remove", {"Name": name}))
        chains.append(chain)
    # In the middle, where both nodes are at work for certain.
    middle = [[_create(node, f"both{n:02}")] for n in range(CONTENDED)]
    middle += [
        [_create(node, f"{who}-wants{n}", subDir=f"wanted{n}")]
        for n in range(DIRECTORIES)
    ]
    half = own // 8
    return [*chains[:half], *middle, *chains[half:]]


def _tell(node: NfsNode, chains: list[list[Call]]) -> dict[str, list[Answer]]:
    """Make the calls in *node*; return the answers by the volume's name."""
    told = call_inside(node.node, chains, threads=THREADS, timeout_s=WORK_DEADLINE_S)
    names = [chain[0][1]["Name"] for chain in chains]
    return dict(zip(names, told, strict=True))


def _expected(
    *told: dict[str, list[Answer]],
) -> tuple[set[str], set[str]]:
    """Return which volumes there have to be, and what directories of removed ones."""
    live: set[str] = set()
    kept: set[str] = set()
    for answers in told:
        for name, given in answers.items():
            errors = [str(each.body["Err"]) for each in given if each.body.get("Err")]
            if "-wants" in name and errors:
                assert errors[0].startswith("NFS-EXISTS: "), errors
                continue
            assert errors == [], (name, errors)
            if len(given) == 1:
                live.add(name)
            elif int(name[-3:]) % 5:
                kept.add(name)
    for number in range(DIRECTORIES):
        winners = [each for each in live if each.endswith(f"-wants{number}")]
        assert len(winners) == 1, winners
    return live, kept


def _directory(name: str) -> str:
    """Return the directory of the volume *name*."""
    _, wants, number = name.partition("-wants")
    return f"wanted{number}" if wants else name


def _catalogue(server: NfsServer) -> dict[str, str]:
    """Return the state of every marker by its volume's name."""
    return {each["name"]: each["state"] for each in _markers(server)}


def _markers(server: NfsServer) -> list[dict[str, str]]:
    path = server.local(f"{XFS}/.dvol/volumes")
    lines = server.run(f"cd {path}; for f in *; do cat $f; echo; done", timeout_s=60)
    return [json.loads(line) for line in lines.splitlines()]


def _claims(server: NfsServer, live: set[str]) -> Iterator[str]:
    """Yield the claims that there have to be, as paths: one for each live volume."""
    path = server.local(f"{XFS}/.dvol/claims")
    lines = server.run(f"cd {path}; grep . *", timeout_s=60).splitlines()
    for line in lines:
        file, _, content = line.partition(":")
        if json.loads(content)["name"] in live:
            yield f"claims/{file}"


def _files(server: NfsServer, *parts: str) -> list[str]:
    """Return everything below those directories of the catalogue."""
    root = server.local(f"{XFS}/.dvol")
    found = server.run(f"cd {root}; find {' '.join(parts)} -mindepth 1")
    return sorted(found.splitlines())


def _bytes_on_server(server: NfsServer) -> dict[str, str]:
    """Return what the file in each volume's directory holds."""
    lines = server.run(f"cd {server.local(XFS)}; grep . */file", timeout_s=60)
    pairs = (line.partition("/file:") for line in lines.splitlines())
    return {name: content for name, _, content in pairs}
