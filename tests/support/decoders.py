"""
Everything that is decoded from where others write, with the errors that each may raise.

`tests/security/test_decoders.py` feeds them what nobody should have written.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import msgspec
from hypothesis import strategies as st

from backends.base import Snapshot
from backends.errors import BackendError, InvalidRequestError
from backends.nfs.agent import schema
from backends.nfs.agent.catalogue import Catalogue, Refused, key_of
from backends.nfs.agent.snapshots import _facts
from backends.nfs.options import (
    DEFAULTS,
    export_of,
    mount_entries,
    parse_options,
    subdir_of,
)
from backends.nfs.records import volume_of
from backends.replication_options import ReplicationOptions
from backends.rsync.backend import RsyncBackend
from backends.rsync.pool import Pool
from backends.rsync.quarantine import _ITEM, _plain
from backends.system.mountinfo import parse_mountinfo
from plugin import config
from plugin.api.docker import wire
from plugin.errors import ConfigError, RemoraError, StoreError
from plugin.events.log import EventsRequest
from plugin.fencing import memory
from plugin.joining import dumping
from plugin.membership.nodes import AliveRecord, NodeRecord
from plugin.membership.quarantine_records import QuarantineRecord
from plugin.membership.snapshot_records import _decoded as snapshots_of
from plugin.model import VolumeHead, VolumeRecord
from plugin.ownership.copy_states import CopyStates
from plugin.ownership.failsafe import HoldRequest
from plugin.ownership.heads import Lock, Tomb
from plugin.ownership.state import EMPTY, Epoch, Head
from plugin.ownership.votes import PromiseRequest
from plugin.ownership.wishes import Wish
from plugin.peers.lines import decode, error_from_json, read_answer
from plugin.peers.questions import Question, anybody
from plugin.replication.at_work import WorkRequest
from plugin.replication.handing import AheadRequest, SendRequest
from plugin.replication.missing_paths import decoded_paths
from plugin.replication.moving import MoveStateRequest
from plugin.replication.node import UnusedRequest
from plugin.replication.progress import Progress
from plugin.replication.reporting import _Answer as TransfersAnswer
from plugin.replication.requests import CommitRequest, StandRequest
from plugin.replication.room import RoomRequest
from plugin.store.base import Record
from plugin.store.database import open_database
from plugin.store.mirror_file import MirrorFile
from plugin.store.values import RecordKind, value_of
from plugin.volumes.catalogue import _put
from plugin.volumes.claimed_snapshots import SnapshotClaim
from plugin.volumes.claims import ClaimRequest
from plugin.volumes.elsewhere import asked_in
from plugin.volumes.history import _checked as events_of
from plugin.volumes.publications import MIGRATION as PUBLICATIONS
from plugin.volumes.publications import Publications
from tests.support import journal_decoders
from tests.support.decoder_seeds import ID, REQUEST, SEEDS
from tests.support.journal_seeds import (
    DELTA,
    FULL,
    RANGES,
    REDO,
    with_right_end,
    with_right_sum,
)
from tests.support.mangling import hostile

Decode = Callable[[Path, bytes], object]


@dataclass(frozen=True)
class Decoder:
    """
    What *decode* makes of bytes, in a directory of its own; or one of *refusals*.

    *contents* are bytes to try it with.
    """

    decode: Decode
    refusals: tuple[type[Exception], ...]
    contents: st.SearchStrategy[bytes]


def _json(value: object) -> bytes:
    return msgspec.json.encode(value)


# On a share


@cache
def _catalogue(directory: Path) -> Catalogue:
    return Catalogue(str(directory), "node1.uuid")


def _on_share(part: str, directory: Path, content: bytes) -> object:
    path = directory / ".dvol" / part / key_of("db")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return _catalogue(directory).read(part, key_of("db"))


def _facts_on_share(directory: Path, content: bytes) -> object:
    (directory / "facts").write_bytes(content)
    return Snapshot.of_facts("s", _facts(_catalogue(directory), "facts"))


OURS = export_of({**DEFAULTS, "server": "nas", "share": "/x"}).options


def _discovered(_: Path, content: bytes) -> object:
    """What the daemon makes of a marker, also of one that no agent has looked at."""
    try:
        marker = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(marker, dict):
        return None
    volume = volume_of(marker, OURS)
    assert schema.is_clean(subdir_of(volume)) or "${" in volume.options["subDir"]
    assert "bg" not in mount_entries(volume).split(",")
    assert volume.options == parse_options(volume.options)
    export_of(volume.options).source()
    return _put(VolumeRecord.of(volume, backend="nfs"))


# Records

_RECORDS: Final[Mapping[str, tuple[type[RecordKind], str]]] = {
    "volume": (VolumeRecord, "volumes/db"),
    "volume head": (VolumeHead, "volumes/db"),
    "head": (Head, f"v/{ID}/head"),
    "lock": (Lock, f"v/{ID}/lock"),
    "epoch": (Epoch, f"v/{ID}/epochs/3"),
    "tomb": (Tomb, f"tomb/{ID}"),
    "node": (NodeRecord, "nodes/n1"),
    "node's lease": (AliveRecord, "alive/n1"),
    "quarantine record": (QuarantineRecord, f"v/{ID}/conflicts/n1/3.7"),
    "mark of a load": (dumping.Marker, "loading"),
}


def _record(kind: type[RecordKind], key: str, _: Path, content: bytes) -> object:
    return value_of(Record(key, content, 1, 2), kind)


def _snapshots(_: Path, content: bytes) -> object:
    return snapshots_of(Record("k", content, 1, 2))


# Peers

_REQUESTS: Final = (
    *(EventsRequest, HoldRequest, PromiseRequest, WorkRequest),
    *(SendRequest, AheadRequest, CommitRequest, StandRequest, UnusedRequest),
    *(MoveStateRequest, RoomRequest),
)


def _request(kind: type[Any], _: Path, line: bytes) -> object:
    return Question(kind, anybody, lambda _, said: {"said": said})("beta", decode(line))


def _answered(request: str, _: Path, line: bytes) -> object:
    answer = read_answer(request, decode(line))
    decoded_paths(answer.get("missing", []))
    return answer


def _events(_: Path, line: bytes) -> object:
    found = events_of(decode(line), 5)
    if isinstance(found, RemoraError):
        raise found
    return found


def _refused(_: Path, line: bytes) -> object:
    return str(error_from_json(decode(line).get("error")))


# Files


def _copy_state(directory: Path, content: bytes) -> object:
    (directory / "replica.json").write_bytes(content)
    return CopyStates(lambda _: directory).read(ID, initial=EMPTY)


def _pool(directory: Path, content: bytes) -> object:
    (directory / "pool.json").write_bytes(content)
    Pool(directory, pool_id=ID).require()
    return "it is ours"


def _volumes_of_pool(directory: Path, content: bytes) -> object:
    (directory / "pool.json").write_bytes(_json({"id": ID}))
    home = directory / "volumes" / ID
    home.mkdir(parents=True, exist_ok=True)
    (home / "volume.json").write_bytes(content)
    return list(RsyncBackend(directory, pool_id=ID).discover())


def _database(directory: Path, content: bytes) -> object:
    path = directory / f"{uuid.uuid4()}.db"
    path.write_bytes(content)
    try:
        open_database(path, ("CREATE TABLE a (b TEXT);",)).close()
    finally:
        for each in directory.iterdir():
            each.unlink()
    return None


def _wished(kind: type[object], _: Path, content: bytes) -> object:
    wish = Wish(volume=ID, node=ID, action="create", to=ID, request=_text(content))
    return asked_in(wish, kind)


def _publications(_: Path, content: bytes) -> object:
    """What cannot be read is passed over."""
    memory = sqlite3.connect(":memory:")
    try:
        memory.executescript(PUBLICATIONS)
        row = ("/target", "boot", content)
        memory.execute("INSERT INTO publications VALUES (?, ?, ?)", row)
        return Publications(memory, threading.Lock(), boot_id="boot").volumes()
    finally:
        memory.close()


def _mirror(directory: Path, content: bytes) -> object:
    """A cache that cannot be read begins anew."""
    (directory / "mirror.db").write_bytes(content)
    mirror = MirrorFile(directory / "mirror.db")
    try:
        return mirror.load()
    finally:
        mirror.close()


def _guard(directory: Path, content: bytes) -> object:
    (directory / memory.FILE_NAME).write_bytes(content)
    return memory.load(str(directory))


# Text of other programs, and of people


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")


def _progress(_: Path, content: bytes) -> object:
    progress = Progress()
    number = progress.begin("sending", ID, "n1")
    progress.note_line(number, _text(content))
    [found] = progress.under_way()
    return found.facts("n1")


def _item(_: Path, content: bytes) -> object:
    found = _ITEM.fullmatch(content)
    return found and _plain(found[2])


def _configuration(directory: Path, content: bytes) -> object:
    (directory / "remora.toml").write_bytes(content)
    return config.load(directory / "remora.toml", {})


def _pairs(content: bytes) -> dict[str, str]:
    """Return what a user may have typed after each -o."""
    found = [each.partition("=") for each in _text(content).split("\n")]
    return {key: value for key, _, value in found}


def _rsync_options(directory: Path, content: bytes) -> object:
    backend = RsyncBackend(directory, pool_id=None)
    parsed = backend.parse_options(_pairs(content))
    assert backend.parse_options(parsed) == parsed
    return ReplicationOptions.of(parsed)


def _nfs_options(_: Path, content: bytes) -> object:
    parsed = parse_options(_pairs(content))
    assert parse_options(parsed) == parsed
    return parsed


def _replication(_: Path, content: bytes) -> object:
    return ReplicationOptions.of(_pairs(content))


def _of_peers() -> dict[str, tuple[Decode, tuple[type[Exception], ...]]]:
    """Return those of what other nodes say."""
    bad = (InvalidRequestError,)
    return {
        "peer: events": (_events, (RemoraError,)),
        "peer: error": (_refused, bad),
        "peer: claim": (partial(_wished, ClaimRequest), bad),
        "peer: claimed snapshot": (partial(_wished, SnapshotClaim), bad),
        "peer: transfers": (partial(_request, TransfersAnswer), bad),
        **{
            f"peer: {request.__qualname__} of {request.__module__}": (
                partial(_request, request),
                bad,
            )
            for request in _REQUESTS
        },
        **{
            f"peer: answer to {name}": (partial(_answered, name), (RemoraError,))
            for name in ("stand", "promise", "commit", "ahead", "hello")
        },
    }


def _decoders() -> dict[str, tuple[Decode, tuple[type[Exception], ...]]]:
    """Return all but the delta's, by the names that their good examples have."""
    bad, no = (InvalidRequestError,), (BackendError,)
    return {
        "share: marker": (partial(_on_share, "volumes"), (Refused,)),
        "share: claim": (partial(_on_share, "claims"), (Refused,)),
        "share: change": (partial(_on_share, "changing"), (Refused,)),
        "share: snapshot": (_facts_on_share, ()),
        "share: discovered": (_discovered, (*no, *bad)),
        "file: what does not fit": (journal_decoders.unfit, no),
        "file: commit's marker": (journal_decoders.marker_of_commit, no),
        "file: copy state": (_copy_state, no),
        "file: pool": (_pool, no),
        "file: volume": (_volumes_of_pool, ()),
        "file: manifest": (journal_decoders.manifest, no),
        "file: database": (_database, (StoreError,)),
        "file: mirror": (_mirror, ()),
        "file: publication": (_publications, ()),
        "file: guard": (_guard, ()),
        "file: dump": (lambda _, content: dumping.read(content), bad),
        "record: snapshots": (_snapshots, ()),
        "text: mounts": (lambda _, text: list(parse_mountinfo(_text(text))), ()),
        "text: progress": (_progress, ()),
        "text: rsync's item": (_item, ()),
        "people: configuration": (_configuration, (ConfigError,)),
        "people: nfs options": (_nfs_options, bad),
        "people: rsync options": (_rsync_options, bad),
        "record: options": (_replication, ()),
        "engine: create": (lambda _, body: wire.parse(wire.CreateCall, body), bad),
        "engine: mount": (lambda _, body: wire.parse(wire.MountCall, body), bad),
        "engine: name": (lambda _, body: wire.parse(wire.NameCall, body), bad),
        **{
            f"record: {name}": (partial(_record, kind, key), (StoreError,))
            for name, (kind, key) in _RECORDS.items()
        },
        **_of_peers(),
    }


DECODERS: Final = {
    name: Decoder(decode, refusals, hostile(SEEDS.get(name, REQUEST)))
    for name, (decode, refusals) in _decoders().items()
} | {
    "file: delta": Decoder(
        journal_decoders.delta,
        (BackendError,),
        hostile(DELTA, FULL, finish=with_right_sum),
    ),
    "file: redo": Decoder(
        journal_decoders.redo, (BackendError,), hostile(REDO, finish=with_right_end)
    ),
    "file: ranges": Decoder(
        journal_decoders.range_log, (BackendError,), hostile(RANGES)
    ),
}
