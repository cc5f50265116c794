"""
Whether what is to be sent fits on the other node's disk, which has others' volumes too.

The sender knows how much it is, so it asks. A disk that is too full for anything the
member tells of by itself, and begins no transfer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from backends.base import WholeNumber
from backends.errors import InvalidRequestError
from backends.system.copying import CopyError
from backends.system.files import free_bytes
from plugin.errors import PeerRefusedError, RemoteError
from plugin.model import VolumeId, VolumeRecord
from plugin.peers.channel import Peers
from plugin.replication.journals import Journals

REQUEST: Final = "room"
_DEADLINE_S: Final = 10.0
# For less it is enough that the member has its reserve.
_ASK_FROM_BYTES: Final = 2**20


class RoomRequest(msgspec.Struct, frozen=True):
    """What a sender asks: whether so many bytes of a volume fit."""

    volume: VolumeId
    size_bytes: WholeNumber


class NoSpaceError(PeerRefusedError):
    """The disk of a node, which is named, is too full."""

    code = "no-space"

    def __init__(self, node: str, lacking: str) -> None:
        super().__init__(
            f"node '{node}': {lacking}",
            hint=f"free space on '{node}', or keep the copy on another node",
        )


@dataclass(frozen=True, slots=True)
class Room:
    """The member's side, on the node that is called *node_name*."""

    journals: Journals
    node_name: str
    by_id: Callable[[str], VolumeRecord | None]

    def answer(self, node_id: str, request: RoomRequest) -> Mapping[str, Any]:
        """
        Answer that what another node would send fits.

        Raises:
            NoSpaceError: it does not.
            PeerRefusedError: there is no such volume.

        """
        del node_id
        record = self.by_id(request.volume)
        if record is None:
            raise PeerRefusedError(f"volume {request.volume} is not known here")
        self.require(record, request.size_bytes)
        return {}

    def require(self, record: VolumeRecord, size_bytes: int = 0) -> None:
        """Raise NoSpaceError unless *size_bytes* more, and a reserve, fit here."""
        if lacking := self.journals.lacking_space(record, size_bytes):
            raise NoSpaceError(self.node_name, lacking)

    def lacking(self, record: VolumeRecord) -> str:
        """Return why nothing fits here any more, "" while something does."""
        try:
            self.require(record)
        except NoSpaceError as error:
            return str(error)
        return ""


def ask_for_room(
    peers: Peers, node_id: str, volume_id: str, source: Path, total_bytes: int
) -> None:
    """
    Return if a node has room for *total_bytes* of *source*, or is too old to say.

    Raises:
        RemoteError: it has none; the text names it.
        PeerUnreachableError: it does not answer.

    """
    total, available = free_bytes(source)
    # Of files with holes the sizes say little: no more can come than the disk holds.
    size_bytes = min(total_bytes, total - available)
    if size_bytes < _ASK_FROM_BYTES:
        return
    body = {"volume": volume_id, "size_bytes": size_bytes}
    try:
        peers.call(node_id, REQUEST, body, deadline_s=_DEADLINE_S)
    except RemoteError as error:
        if error.code != InvalidRequestError.code:
            raise


@contextmanager
def on_disk_of(node_name: str) -> Iterator[None]:
    """Have an error in the block that tells of a full disk name the node as well."""
    try:
        yield
    except CopyError as error:
        if not error.no_space:
            raise
        raise NoSpaceError(node_name, error.cause) from error
