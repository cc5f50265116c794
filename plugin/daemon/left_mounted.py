"""What an earlier process of this node has left mounted, for the guard."""

from __future__ import annotations

from pathlib import Path

from backends.base import VOLUME_ID
from backends.nfs.backend import NfsBackend
from backends.rsync.backend import RsyncBackend
from backends.system import mounts
from plugin.model import VolumeRecord
from plugin.ownership.view import OwnershipView
from plugin.volumes.catalogue import Catalogue


def left_mounted(
    mount_dir: Path, catalogue: Catalogue, ownership: OwnershipView
) -> dict[str, tuple[VolumeRecord, Path]]:
    """
    Return the exclusive volumes mounted in *mount_dir*, by id, and where.

    Those are among them whose records cannot be read: their writers run all the same.

    Raises:
        StoreError: there are mounts, and nobody knows yet of which volumes.

    """
    targets = map(Path, mounts.mounted())
    found = {
        each.name: each
        for each in targets
        if each.parent == mount_dir and VOLUME_ID.fullmatch(each.name)
    }
    records = catalogue.of_ids(found)
    missing = found.keys() - {each.id for each in records}
    names = catalogue.names() if missing else {}
    exclusive = [
        *filter(ownership.exclusive, records),
        # Only what is exclusive has a head.
        *(
            _unread(each, names.get(each, each), ownership)
            for each in missing
            if ownership.heads.has(each)
        ),
    ]
    return {each.id: (each, found[each.id]) for each in exclusive}


def _unread(volume_id: str, name: str, ownership: OwnershipView) -> VolumeRecord:
    """
    Return what the guard needs of a volume whose record cannot be read.

    Without members it counts as shared: nobody agrees that it goes on without etcd.
    """
    head = ownership.heads.head(volume_id)
    has_copy = head is not None and head.members
    return VolumeRecord(
        id=volume_id,
        name=name,
        backend=RsyncBackend.kind if has_copy else NfsBackend.kind,
        requested={},
        options={},
        created_at="",
        phase="ready",
    )
