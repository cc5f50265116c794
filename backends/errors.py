"""
The root of Remora's error tree, and the errors that storage raises.

The daemon's own errors stand in `plugin/errors.py`. Every error is one line for a
person: what, why, and what to do instead.
"""

from __future__ import annotations

LINE_LENGTH_MAX = 1000


def one_line(text: str) -> str:
    """
    Return *text* as one printable line of at most ``LINE_LENGTH_MAX`` characters.

    Names and options come from outside: a line break in one must not forge a second
    log line or a second error.
    """
    if text.isprintable() and len(text) <= LINE_LENGTH_MAX:
        return text
    shown = "".join(
        character if character.isprintable() else repr(character)[1:-1]
        for character in text[: LINE_LENGTH_MAX + 1]
    )
    if len(shown) > LINE_LENGTH_MAX:
        return shown[: LINE_LENGTH_MAX - 1] + "…"
    return shown


class RemoraError(Exception):
    """
    An error with a code for programs and one line for people.

    ``code`` is stable, ``transient`` says whether the same call may succeed later,
    ``unanswered`` whether what is needed gave no answer, which it may by itself: who
    can wait should. ``exit_code`` is what the CLI exits with.
    """

    code: str = "internal"
    transient: bool = False
    unanswered: bool = False
    exit_code: int = 1

    def __init__(self, cause: str, *, hint: str = "") -> None:
        super().__init__(cause)
        self.cause = one_line(cause)
        self.hint = one_line(hint)

    def __str__(self) -> str:
        hint = f" (hint: {self.hint})" if self.hint else ""
        return f"{self.code}: {self.cause}{hint}"


class InvalidRequestError(RemoraError):
    """The caller asked for something that can never work; nothing was done."""

    code = "invalid-request"
    exit_code = 10


class VolumeBusyError(RemoraError):
    """The volume is in use, or another operation on it is under way."""

    code = "volume-busy"
    transient = True
    exit_code = 12


class VolumeExistsError(RemoraError):
    """The name belongs to a volume with other options."""

    code = "volume-exists"
    exit_code = 18


class SnapshotExistsError(RemoraError):
    """The volume has a snapshot of that name already."""

    code = "snapshot-exists"
    exit_code = 21


class SnapshotNotFoundError(RemoraError):
    """The volume has no snapshot of that name."""

    code = "snapshot-not-found"
    exit_code = 22


class BackendError(RemoraError):
    """Storage could not do it; the cause is in the text."""

    code = "backend-failed"
    exit_code = 15


class StorageAwayError(BackendError):
    """Storage is not there: its disk is not mounted yet, or not any more."""

    unanswered = True


class DeadlineError(RemoraError):
    """The operation did not finish in time and is being undone."""

    code = "deadline"
    transient = True
    exit_code = 16
