"""
The daemon's own errors; the tree's root and storage's errors: `backends.errors`.

Exit codes: 2 is usage (click's), 1 an error of ours.
"""

from __future__ import annotations

from backends.errors import RemoraError


class VolumeNotFoundError(RemoraError):
    """There is no volume of that name."""

    code = "volume-not-found"
    exit_code = 11


class NotKnownYetError(RemoraError):
    """Whether there is such a volume, storage alone knows, and it was not read yet."""

    code = "not-known-yet"
    transient = True
    unanswered = True
    exit_code = 29


class StoreError(RemoraError):
    """The store of records did not answer, is damaged, or is of a newer version."""

    code = "store-unavailable"
    transient = True
    unanswered = True
    exit_code = 13


class RecordsError(StoreError):
    """The store did answer: what it has cannot be read, or kept, or is too old."""

    unanswered = False


class TooEarlyError(StoreError):
    """It is a matter of time only: whoever can wait a while should."""


class ChangedError(StoreError):
    """Somebody else changed a record since it was read; nothing was changed."""


class NotOwnerError(RemoraError):
    """Another node has the volume or its newest bytes; *transient*: not for long."""

    code = "not-owner"
    exit_code = 14

    def __init__(
        self,
        cause: str,
        *,
        hint: str = "",
        transient: bool = False,
        unanswered: bool = False,
    ) -> None:
        super().__init__(cause, hint=hint)
        self.transient = transient
        self.unanswered = unanswered


class OwnedElsewhereError(NotOwnerError):
    """A node that lives has the volume in use; the text names it."""

    code = "owned-elsewhere"
    exit_code = 35


class PublishedOtherwiseError(RemoraError):
    """The path shows a volume already: another one, or in another way."""

    code = "published-otherwise"
    exit_code = 30


class OneWriterError(RemoraError):
    """The volume is for one path at a time, and is at another one."""

    code = "one-writer"
    exit_code = 31


class OutOfRangeError(RemoraError):
    """No storage here could ever give that size."""

    code = "out-of-range"
    exit_code = 32


class NoRoomError(RemoraError):
    """Storage has not that much room now."""

    code = "no-room"
    exit_code = 33


class StorageSilentError(RemoraError):
    """Storage did not say how full the volume is."""

    code = "silent"
    transient = True
    exit_code = 34


class ConfigError(RemoraError):
    """The configuration has faults; each stands on a line of its own in ``faults``."""

    code = "config"
    exit_code = 17

    def __init__(self, faults: list[str], *, source: str) -> None:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        super().__init__(
            f"{count} in {source}: {'; '.join(faults)}",
            hint="remora config check shows them one by one",
        )
        self.faults = faults


class DaemonUnreachableError(RemoraError):
    """The daemon did not answer on its control socket."""

    code = "daemon-unreachable"
    transient = True
    exit_code = 19


class EngineError(RemoraError):
    """The Docker Engine refused or did not answer."""

    code = "engine"
    exit_code = 20


class PeerUnreachableError(RemoraError):
    """Another node could not be reached, or gave no answer; it may have acted."""

    code = "peer-unreachable"
    transient = True
    unanswered = True
    exit_code = 23


class PeerSilentError(PeerUnreachableError):
    """Another node gave no answer for as long as it was waited for."""


class PeerRefusedError(RemoraError):
    """A node asks for what it may not have, or for too much at once."""

    code = "peer-refused"
    exit_code = 24


class NodeConflictError(RemoraError):
    """The records of the cluster's nodes forbid it; nothing was changed."""

    code = "node-conflict"
    exit_code = 27


class NodeNotFoundError(RemoraError):
    """The cluster has no node of that name or id."""

    code = "node-not-found"
    exit_code = 25


class RemoteError(RemoraError):
    """An error that the daemon reported to the CLI, with its code and exit code."""

    def __init__(self, code: str, cause: str, *, hint: str, exit_code: int) -> None:
        super().__init__(cause, hint=hint)
        self.code = code
        self.exit_code = exit_code


class FencingError(RemoraError):
    """The process that stops writers of volumes that are not ours did not answer."""

    code = "fencing"
    transient = True
    exit_code = 26


class EnrolmentError(RemoraError):
    """A machine could not be made a node of the cluster; it can be tried again."""

    code = "enrolment"
    exit_code = 28
