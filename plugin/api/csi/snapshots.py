"""The part of the service Controller that is about snapshots."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp

from backends.errors import RemoraError
from plugin.api.csi.claimed import claimed
from plugin.api.csi.daemon import Daemon, quoted, wait_s
from plugin.api.csi.errors import invalid
from plugin.api.csi.messages import Package
from plugin.api.csi.paging import page
from plugin.api.csi.requests import own, required
from plugin.api.csi.server import Handler
from plugin.model import NAME_PATTERN, SNAPSHOT_NAME_PATTERN

_ID_SIZE_MAX: Final = 128


class SnapshotsService:
    """Answers for the snapshots of all nodes."""

    def __init__(self, csi: Package, daemon: Daemon) -> None:
        self._csi = csi
        self._daemon = daemon

    def handlers(self) -> dict[str, Handler]:
        """Return the methods."""
        return {
            "CreateSnapshot": self._create,
            "DeleteSnapshot": self._delete,
            "ListSnapshots": self._list,
        }

    def _create(self, request: Any, left_s: float | None) -> Any:
        required(request, "name", "source_volume_id")
        if parameters := own(request.parameters):
            raise invalid(f"parameter '{min(parameters)[:64]}': snapshots have none")
        claimed(self._daemon, request.source_volume_id)
        made = self._daemon.call(
            "POST",
            "/v1/snapshots",
            {
                "name": request.source_volume_id,
                "snapshot": name_of(request.source_volume_id, request.name),
                "wait_s": wait_s(left_s),
            },
        )
        return self._csi.CreateSnapshotResponse(snapshot=self._snapshot(made))

    def _delete(self, request: Any, left_s: float | None) -> Any:
        required(request, "snapshot_id")
        volume, _, snapshot = request.snapshot_id.partition("@")
        if snapshot:
            asked = {"name": volume, "snapshot": snapshot, "wait_s": wait_s(left_s)}
            self._daemon.call("DELETE", "/v1/snapshots", asked)
        return self._csi.DeleteSnapshotResponse()

    def _list(self, request: Any, _left_s: float | None) -> Any:
        path = "/v1/snapshots"
        volume = request.source_volume_id
        if request.snapshot_id:
            of, _, _ = request.snapshot_id.partition("@")
            if volume and volume != of:
                return self._csi.ListSnapshotsResponse()
            volume = of
        if volume:
            if not NAME_PATTERN.fullmatch(volume):  # no volume has it
                return self._csi.ListSnapshotsResponse()
            path += f"?volume={quoted(volume)}"
        try:
            found = self._daemon.call("GET", path)
        except RemoraError as error:
            if error.code not in ("volume-not-found", "invalid-request"):
                raise
            found = []
        if request.snapshot_id:
            found = [each for each in found if _id(each) == request.snapshot_id]
        told, token = page(
            found,
            lambda each: f"{each['created_at']} {_id(each)}",
            token=request.starting_token,
            entries_max=request.max_entries,
        )
        csi = self._csi
        return csi.ListSnapshotsResponse(
            entries=[
                csi.ListSnapshotsResponse_Entry(snapshot=self._snapshot(each))
                for each in told
            ],
            next_token=token,
        )

    def _snapshot(self, row: Mapping[str, Any]) -> Any:
        made_at = Timestamp()
        if row["created_at"]:
            made_at.FromJsonString(row["created_at"])
        return self._csi.Snapshot(
            snapshot_id=_id(row),
            source_volume_id=row["source"],
            size_bytes=row["size_bytes"],
            creation_time=made_at,
            ready_to_use=True,
        )


def name_of(volume: str, name: str) -> str:
    """Return what the snapshot is called that a scheduler calls *name*."""
    fits = len(f"{volume}@{name}".encode()) <= _ID_SIZE_MAX
    if fits and SNAPSHOT_NAME_PATTERN.fullmatch(name):
        return name
    return f"csi-{hashlib.sha256(name.encode()).hexdigest()[:32]}"


def _id(row: Mapping[str, Any]) -> str:
    return f"{row['source']}@{row['name']}"
