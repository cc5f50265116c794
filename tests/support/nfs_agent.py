"""One node's agent on a share, driven without the process around it."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

from backends.nfs.agent import volumes
from backends.nfs.agent.catalogue import Catalogue, key_of

Json = dict[str, Any]


class Node:
    """One node's agent on the share at *root*."""

    def __init__(self, root: Path, name: str) -> None:
        self.catalogue = Catalogue(str(root), name)
        self.root = root

    @staticmethod
    def creation(name: str, **changes: Any) -> Json:
        """Return the request for the volume *name*."""
        marker = {
            "id": str(uuid.uuid4()),
            "name": name,
            "subdir": name,
            "adopt": False,
            "requested": {},
            "options": {},
            "created_at": "2026-01-02T03:04:05Z",
            **changes,
        }
        owner = {"own_uid": os.getuid(), "own_gid": os.getgid()}
        return {"marker": marker, "content": "", **owner, "mode": 0o750}

    def create(self, name: str, **changes: Any) -> Json:
        return volumes.create(self.catalogue, self.creation(name, **changes))

    def remove(self, marker: Json, on_delete: str = "delete") -> str:
        return volumes.remove(
            self.catalogue,
            {
                "name": marker["name"],
                "id": marker["id"],
                "on_delete": on_delete,
                "time": "2026-01-02T030405Z",
            },
        )

    def hold(self, marker: Json) -> Json:
        return volumes.hold(
            self.catalogue, {"name": marker["name"], "id": marker["id"]}
        )

    def release(self, marker: Json) -> None:
        volumes.release(self.catalogue, {"id": marker["id"]})

    def names(self) -> list[str]:
        return sorted(
            each["name"] for each in self.catalogue.scan() if each["state"] == "ready"
        )

    def left(self, *parts: str) -> list[str]:
        """Return what lies below `.dvol`/*parts*."""
        directory = self.root.joinpath(".dvol", *parts)
        if not directory.is_dir():
            return []
        return sorted(each.name for each in directory.iterdir())

    def forge(self, marker: Json, **changes: Any) -> None:
        """Rewrite the marker as a crash, or a fault, leaves it; None: not there."""
        path = self.root / ".dvol/volumes" / key_of(marker["name"])
        forged = {**marker, **changes}
        path.write_text(
            json.dumps({key: forged[key] for key in forged if forged[key] is not None})
        )
