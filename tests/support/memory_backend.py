"""A backend without storage, for tests of what stands above backends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from backends import options as parse
from backends.base import NOTHING, Fill, Snapshots, Storage, Traits, Volume
from backends.errors import BackendError, VolumeBusyError
from backends.system.mounts import VolumeUser


class MemoryBackend:
    """
    Keeps volumes in dictionaries that outlive it, as a disk outlives a daemon.

    ``before`` is called with (operation, volume) ahead of each change; tests make it
    block, fail or crash.
    """

    # The records name only backends that there are.
    kind = "rsync"

    def __init__(self, disk: dict[str, Volume], directory: Path | None = None) -> None:
        self.disk = disk
        # Where each volume has a directory for what is known of its copy.
        self.directory = directory
        self.mounted: dict[Path, str] = {}
        self.used_by: dict[str, list[VolumeUser]] = {}
        self.working: set[Path] = set()
        self.trash: list[str] = []
        self.fault = ""
        self.before: Callable[[str, Volume], None] = lambda _operation, _volume: None
        self.traits = Traits(reachable_from_every_node=False)
        self._guard = threading.Lock()

    def parse_options(self, raw: Mapping[str, str]) -> dict[str, str]:
        return parse.parse_options(
            raw, {"mode": parse.octal_mode, "size": parse.size_bytes}, backend=self.kind
        )

    def default_options(self, _name: str = "", /) -> dict[str, str]:
        return {"mode": "0755"}

    def merge_options(
        self, base: Mapping[str, str], over: Mapping[str, str]
    ) -> dict[str, str]:
        return {**base, **over}

    def implied(self, _raw: Mapping[str, str], /) -> Collection[str]:
        return ()

    def claims(self, raw: Mapping[str, str]) -> bool:
        return False

    @property
    def snapshots(self) -> Snapshots:
        raise BackendError("memory has no snapshots")

    def require_creatable(self, volume: Volume, *, filled: bool) -> None:
        if self.fault:
            raise BackendError(self.fault)

    def create(
        self,
        volume: Volume,
        *,
        deadline_s: float,
        fill: Fill | None = None,
        beside: Mapping[str, bytes] = NOTHING,
    ) -> Volume:
        if fill is not None:
            raise BackendError("memory has no directories")
        self.before("create", volume)
        with self._guard:
            made = self.disk.setdefault(volume.id, volume)
        directory = self.copy_directory(volume)
        for name, content in beside.items():
            if directory is not None:
                (directory / name).write_bytes(content)
        return made

    def discard(self, volume: Volume, *, deadline_s: float) -> None:
        self.remove(volume, deadline_s=deadline_s)

    def remove(self, volume: Volume, *, deadline_s: float) -> None:
        self.before("remove", volume)
        with self._guard:
            if self.disk.pop(volume.id, None):
                self.trash.append(volume.id)

    def exclusive(self, volume: Volume) -> bool:
        return True

    def copy_directory(self, volume: Volume) -> Path | None:
        if self.directory is None or volume.id not in self.disk:
            return None
        copy = self.directory / volume.id
        copy.mkdir(exist_ok=True)
        return copy

    def copies(self) -> Collection[str]:
        return {*self.disk} if self.directory is not None else ()

    def mount(self, volume: Volume, target: Path, *, deadline_s: float) -> None:
        self.before("mount", volume)
        with self._guard:
            if volume.id not in self.disk:
                raise BackendError(f"the data of '{volume.name}' is missing")
            self.mounted[target] = volume.id

    def unmount(self, volume: Volume, target: Path, *, deadline_s: float) -> None:
        self.before("unmount", volume)
        with self._guard:
            if target in self.working:
                raise VolumeBusyError(f"{target} is in use")
            self.mounted.pop(target, None)

    def users(self, volume: Volume, target: Path) -> list[VolumeUser]:
        self.before("users", volume)
        return self.used_by.get(volume.id, [])

    def status(self, volume: Volume) -> Mapping[str, object]:
        return {"replication": "none"}

    def require_removable(self, volume: Volume) -> None:
        if self.fault:
            raise BackendError(self.fault)

    def storages(self) -> list[Storage]:
        return [Storage("memory", self.fault)]

    def data_directory(self, volume: Volume, snapshot: str = "") -> Path:
        raise BackendError("memory has no directories")

    def discover(self) -> Iterator[Volume]:
        yield from list(self.disk.values())

    def knows(self, volume: Volume) -> bool:
        return True

    def find(self, name: str, **_: object) -> Volume | None:
        return None

    def close(self) -> None:
        pass

    def collect_garbage(self, *, deadline_s: float) -> int:
        count = len(self.trash)
        self.trash.clear()
        return count
