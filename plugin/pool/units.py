"""What mounts a pool at each start, before the daemon: units, or a line of fstab."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backends.errors import InvalidRequestError
from backends.system.run import run
from plugin.pool.target import Target

UNITS: Final = Path("/etc/systemd/system")
_MARK: Final = "# Written by `remora pool make`."
_RUNS: Final = Path("/run/systemd/system")
# It gives devices their names; without it (in a container) there are no such names.
_NAMER: Final = Path("/run/udev/control")
_DEADLINE_S: Final = 60.0
# A filesystem that the power left is mended when it is mounted. For `nofail` the boot
# does not wait for it, and ssh: the daemon alone does.
_MOUNT: Final = f"""\
{_MARK}
[Unit]
Description=The pool of Remora's volumes
Documentation=file:///usr/share/doc/remora/guides/install.md
{{more}}
[Mount]
What={{what}}
Where={{where}}
Type={{kind}}
Options={{options}}
TimeoutSec=600
"""
# Else what is in a file is kept in memory twice, and costs half of the disk's speed. A
# disk that cannot is no reason to fail.
_DIRECT: Final = f"""\
{_MARK}
[Unit]
Description=Direct I/O for the file of Remora's pool
BindsTo={{mount}}
After={{mount}}
Before=remora.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=-/bin/sh -c '{{command}}'
"""
_DIRECT_NAME: Final = "remora-pool-direct.service"
# Without the mount the daemon is not started: it would find no pool there.
_SERVICE: Final = f"""\
{_MARK}
[Unit]
RequiresMountsFor={{where}}
"""
# What `fstab` is to tell systemd, where it runs; others pass over it.
_FOR_SYSTEMD: Final = (
    "nofail",
    "x-systemd.required-by=remora.service",
    "x-systemd.before=remora.service",
)


def systemd_runs() -> bool:
    """Return whether this machine was started by systemd. Source: sd_booted(3)."""
    return _RUNS.is_dir()


def services_running() -> list[str]:
    """Return which of our units are active, or about to be."""
    found = []
    for unit in ("remora.socket", "remora.service"):
        said = run(
            ["systemctl", "is-active", unit], deadline_s=_DEADLINE_S, allowed=range(256)
        ).output.strip()
        if said in {"active", "activating", "reloading", "deactivating"}:
            found.append(unit)
    return found


@dataclass(frozen=True, slots=True)
class Units:
    """The units that mount *target* at *where*, and have the daemon wait for that."""

    target: Target
    where: Path
    directory: Path = UNITS

    def name(self) -> str:
        """Return the name of the mount's unit, which systemd derives from its place."""
        command = ["systemd-escape", "--path", "--suffix=mount", str(self.where)]
        return run(command, deadline_s=_DEADLINE_S).output.strip()

    def check(self) -> None:
        """Raise InvalidRequestError if somebody else has written one of them."""
        for path in self._paths():
            if os.path.lexists(path) and not _read(path).startswith(_MARK):
                raise InvalidRequestError(
                    f"{path} was not written by this command",
                    hint="remove it, or --no-unit",
                )

    def to_write(self) -> dict[Path, str]:
        """Return what has to be written, by path; the target has its filesystem."""
        mount, service, direct = self._paths()
        texts = {
            mount: _MOUNT.format(
                what=_what(self.target),
                where=self.where,
                kind=self.target.kind.name,
                options=",".join(("nofail", *self.target.options())),
                more=f"Wants={_DIRECT_NAME}\n" if self.target.in_file else "",
            ),
            service: _SERVICE.format(where=self.where),
        }
        if self.target.in_file:
            # To systemd one $ begins a variable of its own.
            command = direct_io(self.where).replace("$", "$$")
            texts[direct] = _DIRECT.format(mount=mount.name, command=command)
        return {path: text for path, text in texts.items() if _read(path) != text}

    def _paths(self) -> tuple[Path, Path, Path]:
        return (
            self.directory / self.name(),
            self.directory / "remora.service.d" / "pool.conf",
            self.directory / _DIRECT_NAME,
        )


def direct_io(where: Path) -> str:
    """Return the shell's command to have a file that is mounted at *where* so used."""
    device = f"findmnt --noheadings --output SOURCE --mountpoint {where}"
    return f'losetup --direct-io=on "$({device})"'


def fstab_line(target: Target, where: Path) -> str:
    """Return the line that has *target* mounted at *where*, in the place of units."""
    what = str(target.path) if target.in_file else f"UUID={target.uuid()}"
    more = _FOR_SYSTEMD if systemd_runs() else ()
    options = ",".join((*target.options(), *more)) or "defaults"
    return f"{what} {where} {target.kind.name} {options} 0 0"


def _what(target: Target) -> str:
    """Return the name that stays, whatever order devices are found in."""
    if target.in_file or not _NAMER.exists():
        return str(target.path)
    return f"/dev/disk/by-uuid/{target.uuid()}"


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "surrogateescape")
    except FileNotFoundError:
        return ""
