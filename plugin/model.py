"""The daemon's values: frozen, with nothing but checks of themselves."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Final, Literal

import msgspec

from backends.base import VOLUME_ID, LineText, Volume, WholeNumber
from backends.errors import InvalidRequestError
from backends.registry import TRAITS
from plugin.limits import MOUNT_ID_LENGTH_MAX, OPTION_KEY_LENGTH_MAX, OPTIONS_MAX

# docs.docker.com allows the same alphabet; the engine itself checks nothing on the
# plugin's way (moby passes `../../x` on), so this check is the only one.
NAME_PATTERN: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}")
SNAPSHOT_NAME_PATTERN: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}")

# The forms of what records hold, as a fault or a stranger may have written anything.
# A record that does not have them cannot be read; see `store/values.py`.
NODE_ID: Final = r"[0-9A-Za-z-]{1,64}"
NodeId = Annotated[str, msgspec.Meta(pattern=rf"\A{NODE_ID}\Z")]
NodeIdOrNone = Annotated[str, msgspec.Meta(pattern=rf"\A(?:{NODE_ID})?\Z")]
VolumeId = Annotated[str, msgspec.Meta(pattern=rf"\A{VOLUME_ID.pattern}\Z")]
VolumeName = Annotated[str, msgspec.Meta(pattern=rf"\A{NAME_PATTERN.pattern}\Z")]
# A backend of a newer version is none: only that version knows what to do with it.
BackendKind = Annotated[str, msgspec.Meta(pattern=rf"\A(?:{'|'.join(TRAITS)})\Z")]
_OptionKey = Annotated[
    str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_]+\Z", max_length=OPTION_KEY_LENGTH_MAX)
]
Options = Annotated[
    dict[_OptionKey, LineText], msgspec.Meta(max_length=2 * OPTIONS_MAX)
]
_RECORD_KEY: Final = re.compile(rf"volumes/(?P<name>{NAME_PATTERN.pattern})")

Phase = Literal["creating", "ready", "removing"]


class VolumeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """
    One volume as the store keeps it, under ``volumes/<name>``.

    ``requested`` are the options as the user gave them, in canonical form: they decide
    whether a second Create asks for the same volume. ``options`` are those with the
    profile's and the backend's defaults filled in: they decide what the volume is.
    ``phase`` is the intent that makes create and remove survive a crash. If a record is
    `creating` at the start of ``node``, which began it, that node undoes the creation;
    if it is `removing`, the node finishes the removal. ``filled``: the volume was made
    with bytes in it; records from before this field count as filled. ``asked_bytes`` is
    the size that a scheduler asked for where storage cannot limit it, ``claim`` whose
    claim the volume was made for.
    """

    KEY: ClassVar[re.Pattern[str]] = _RECORD_KEY

    id: VolumeId
    name: VolumeName
    backend: BackendKind
    requested: Options
    options: Options
    created_at: LineText
    phase: Phase
    node: NodeIdOrNone = ""
    filled: bool = True
    asked_bytes: WholeNumber = 0
    claim: LineText = ""

    @classmethod
    def of(cls, volume: Volume, *, backend: str) -> VolumeRecord:
        """Return the record of a *volume* that was found complete on storage."""
        return cls(
            id=volume.id,
            name=volume.name,
            backend=backend,
            requested=dict(volume.requested),
            options=dict(volume.options),
            created_at=volume.created_at,
            phase="ready",
        )

    def volume(self) -> Volume:
        """Return what the backend is told of this volume."""
        return Volume(
            id=self.id,
            name=self.name,
            options=self.options,
            created_at=self.created_at,
            requested=self.requested,
        )

    def made(self, volume: Volume) -> VolumeRecord:
        """Return this record as ready, with what storage says of the volume."""
        return msgspec.structs.replace(
            self,
            id=volume.id,
            options=dict(volume.options),
            created_at=volume.created_at,
            phase="ready",
        )


class VolumeHead(msgspec.Struct, frozen=True, kw_only=True):
    """
    The fields of a `VolumeRecord` that are looked at for all volumes.

    Decoding skips the rest; and a phase of a newer version is a phase, too.
    """

    KEY: ClassVar[re.Pattern[str]] = _RECORD_KEY

    id: VolumeId
    name: VolumeName
    backend: BackendKind
    created_at: LineText
    phase: LineText


class VolumeSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a list of volumes; ``mountpoint`` is "" if unmounted."""

    id: str
    name: str
    backend: str
    mountpoint: str
    created_at: str


def check_name(name: str) -> str:
    """
    Return *name* if it is a valid volume name.

    Raises:
        InvalidRequestError: it is not; nothing was done.

    """
    if NAME_PATTERN.fullmatch(name):
        return name
    shown = name if len(name) <= 80 else f"{name[:80]}… ({len(name)} characters)"
    hint = "1 to 255 letters, digits, '_', '.' or '-', the first a letter or digit"
    if "/" in name:  # an export, as netshare has it
        hint += "; the option share=SERVER:/PATH names an export"
    raise InvalidRequestError(f"'{shown}' is not a volume name", hint=hint)


def check_snapshot_name(name: str) -> str:
    """Return *name* if it is a valid name of a snapshot, or raise."""
    if SNAPSHOT_NAME_PATTERN.fullmatch(name):
        return name
    raise InvalidRequestError(
        f"'{name[:80]}' is not a snapshot's name",
        hint="1 to 64 letters, digits, '_', '.' or '-', the first a letter or digit",
    )


def check_mount_id(mount_id: str) -> str:
    """
    Return *mount_id*; the engine's have 64 characters, the oldest engines send none.

    Raises:
        InvalidRequestError: it is too long to be kept.

    """
    if len(mount_id) <= MOUNT_ID_LENGTH_MAX:
        return mount_id
    raise InvalidRequestError(
        f"the mount id has {len(mount_id)} characters; "
        f"at most {MOUNT_ID_LENGTH_MAX} are read"
    )
