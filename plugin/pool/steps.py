"""
The steps that make a pool, in their order.

Each says what is still to be done, and does it; what is done already is left alone. So
one that failed, or was broken off anywhere, is finished by repeating the command.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar, Final, Protocol

from backends.errors import BackendError, InvalidRequestError
from backends.rsync.pool import identity_file, identity_in, new_identity
from backends.system import block_devices, files
from backends.system.run import run
from plugin.pool.directory import PoolDirectory
from plugin.pool.target import State, Target
from plugin.pool.units import Units, direct_io

_ALLOCATE_DEADLINE_S: Final = 900.0
# On a device all blocks are discarded first, which some take long for.
_FORMAT_DEADLINE_S: Final = 3600.0
_MOUNT_DEADLINE_S: Final = 660.0
# In mounts of its own, which end with it. The name comes last, when all else is on the
# disk: without it the next command begins anew.
_FILL: Final = """
kind=$1 options=$2 source=$3 at=$4 content=$5
shift 5
mount -t "$kind" ${options:+-o "$options"} -- "$source" "$at"
chmod 0700 -- "$at"
if [ -n "$content" ] && [ ! -e "$at/pool.json" ]; then
    mkdir -p -m 0700 -- "$at/volumes"
    printf %s "$content" > "$at/.pool.json"
    chmod 0600 -- "$at/.pool.json"
    sync -- "$at/.pool.json"
    mv -- "$at/.pool.json" "$at/pool.json"
fi
sync -f -- "$at"
[ ! -e "$at/pool.json" ] || cat -- "$at/pool.json"
"$@" > /dev/null
umount -- "$at"
"""


class Step(Protocol):
    """One step; `name` is what it is called in the plan."""

    @property
    def name(self) -> str:
        """Return what people and programs know it by."""

    def pending(self) -> str:
        """Return what is to be done, "" if nothing is; nothing is changed."""

    def do(self) -> None:
        """Do it; raise an error if it could not be done."""


@dataclass(frozen=True, slots=True)
class Reserve:
    """A file's room, all at once: it never runs out under the filesystem."""

    target: Target
    state: State
    name: ClassVar[str] = "reserve"

    def pending(self) -> str:
        """Return how much is reserved, and where."""
        if not self.target.in_file or self.state == "whole":
            return ""
        mib = self.target.size_bytes // 2**20
        anew = ", in place of an unfinished one" if self.state == "unfinished" else ""
        return f"{mib} MiB for {self.target.path}{anew}"

    def do(self) -> None:
        """Make the file, under its name for the time being."""
        draft = self.target.draft
        draft.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        os.close(os.open(draft, flags, 0o600))
        length = str(self.target.size_bytes)
        command = ["fallocate", "--length", length, str(draft)]
        run(command, deadline_s=_ALLOCATE_DEADLINE_S)


@dataclass(frozen=True, slots=True)
class Format:
    """The filesystem, with a label that says that it is not whole yet."""

    target: Target
    state: State
    name: ClassVar[str] = "format"

    def pending(self) -> str:
        """Return which filesystem is made, and where."""
        if self.state == "whole":
            return ""
        kind = self.target.kind
        lost = "" if self.target.in_file else "; what is on it is lost"
        return f"{kind.make[0]} on {self.target.path}{lost}"

    def do(self) -> None:
        """Make it; over what is there only if that is an unfinished one of ours."""
        kind, target = self.target.kind, self.target
        again = self.state == "unfinished" and not target.in_file
        command = [
            *kind.make,
            *(kind.make_in_file if target.in_file else ()),
            *(("-f",) if again else ()),
            str(target.draft),
        ]
        run(command, deadline_s=_FORMAT_DEADLINE_S)


@dataclass(frozen=True, slots=True)
class Fill:
    """What the daemon knows the pool by; the trial that it can be mounted; its name."""

    target: Target
    state: State
    directory: PoolDirectory
    is_mounted: bool
    name: ClassVar[str] = "fill"

    def pending(self) -> str:
        """Return that it is tried."""
        if self.is_mounted:
            return ""
        return "mount it on trial, for root alone, and mark it as this node's pool"

    def do(self) -> None:
        """
        Do that.

        Raises:
            InvalidRequestError: it is another node's pool, or an earlier one.
            BackendError, StoreError: something could not be written.

        """
        files.make_directories(self.directory.path, mode=0o700)
        target, directory = self.target, self.directory
        wanted = "" if directory.is_moved() else directory.identity()
        is_new = self.state != "whole"
        source = target.draft if is_new else target.path
        # A pool that is not where it should be is not replaced by an empty one.
        is_open = not (directory.is_moved() or directory.missing())
        give = wanted or new_identity() if is_open else ""
        done = run(
            [
                *("unshare", "--mount", "--propagation", "private", "--"),
                *("sh", "-euc", _FILL, "fill", target.kind.name),
                ",".join(target.options_on_trial()),
                *(str(source), str(self.directory.path)),
                identity_file(give) if give else "",
                *target.labelling(self.directory.path),
            ],
            deadline_s=_MOUNT_DEADLINE_S,
        )
        found = done.output.strip()
        if wanted and found != identity_file(wanted):
            raise InvalidRequestError(
                f"{target.path} is not this node's pool {wanted}",
                hint=f"it says: {found or 'nothing'}",
            )
        block_devices.sync(source)
        if is_new and target.in_file:
            target.draft.rename(target.path)
            files.sync_directory(target.path.parent)
        # Else a daemon that first starts without the mount makes a pool below it.
        if is_open:
            directory.note(identity_in(found.encode(), source))


@dataclass(frozen=True, slots=True)
class Clear:
    """The directory that it is mounted on: nothing is to lie hidden below a mount."""

    directory: PoolDirectory
    is_mounted: bool
    name: ClassVar[str] = "clear"

    def pending(self) -> str:
        """Return what is removed: of a pool without volumes."""
        if self.is_mounted:
            return ""
        found = [each.name for each in self.directory.leftovers()]
        return f"remove from {self.directory.path}: {', '.join(found)}" if found else ""

    def do(self) -> None:
        """Remove it; the new pool has the same identity."""
        self.directory.clear()


@dataclass(frozen=True, slots=True)
class WriteUnits:
    """The units that mount it, and have the daemon wait; None: systemd does not run."""

    units: Units | None
    state: State
    name: ClassVar[str] = "units"

    def pending(self) -> str:
        """Return which are written."""
        if self.units is None:
            return ""
        if self.state != "whole":
            return f"write {self.units.name()}, for which remora.service waits"
        return ", ".join(f"write {path}" for path in self.units.to_write())

    def do(self) -> None:
        """Write them, and have systemd read them."""
        if self.units is None:
            return
        for path, text in self.units.to_write().items():
            files.make_directories(path.parent, mode=0o755)
            files.write_durably(path, text.encode(), mode=0o644)
        run(["systemctl", "daemon-reload"], deadline_s=_MOUNT_DEADLINE_S)


@dataclass(frozen=True, slots=True)
class Mount:
    """The pool at its place, by *units* if there are any."""

    target: Target
    directory: PoolDirectory
    units: Units | None
    is_mounted: bool
    name: ClassVar[str] = "mount"

    def pending(self) -> str:
        """Return where it is mounted."""
        return "" if self.is_mounted else f"at {self.directory.path}"

    def do(self) -> None:
        """
        Mount it.

        Raises:
            BackendError: it was refused; or something else was mounted.

        """
        target, at = self.target, self.directory.path
        if self.units is None:
            options = ",".join(target.options()) or "defaults"
            command = ["mount", "-t", target.kind.name, "-o", options, "--"]
            run([*command, str(target.path), str(at)], deadline_s=_MOUNT_DEADLINE_S)
            if target.in_file:
                # Some disks cannot: they are slower then.
                command = ["sh", "-c", direct_io(at)]
                run(command, deadline_s=_MOUNT_DEADLINE_S, allowed=range(256))
        else:
            unit = self.units.name()
            try:
                run(["systemctl", "start", unit], deadline_s=_MOUNT_DEADLINE_S)
            except BackendError as error:
                raise BackendError(
                    error.cause, hint=f"journalctl -u {unit} says why"
                ) from error
        if not target.is_at(at):
            raise BackendError(f"{target.path} was not mounted at {at}")
