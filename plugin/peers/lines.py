"""JSON lines between daemons: one request or answer a line, of bounded length."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, TypeVar

import msgspec

from backends.errors import InvalidRequestError, RemoraError
from backends.system.decoding import from_json, from_objects
from plugin.errors import RemoteError

LINE_LENGTH_MAX: Final = 64 * 1024
_CHUNK: Final = 16 * 1024
_Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
# A code is in log lines and labels of metrics as it is.
_Code = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z-]{1,64}\Z")]
_Failure = Annotated[int, msgspec.Meta(ge=1, le=255)]
Request = TypeVar("Request")


class _Copy(msgspec.Struct, frozen=True):
    """What an answer says of a copy: epoch and number of its commit."""

    commit: tuple[_Number, _Number]


class _Carried(msgspec.Struct, frozen=True):
    """What was on the line: at most what disks hold, so that more can be added."""

    carried_bytes: Annotated[int, msgspec.Meta(ge=0, le=2**56)] = 0


class _Clock(msgspec.Struct, frozen=True):
    """What time it is at a node."""

    wall_s: Annotated[float, msgspec.Meta(ge=0, le=2**40)] | None = None


# Of what is used without another look.
_ANSWERS: Final[Mapping[str, type[msgspec.Struct]]] = {
    "stand": _Copy,
    "promise": _Copy,
    "send": _Carried,
    "ahead": _Carried,
    "hello": _Clock,
}


class Lines:
    """The lines from *receive*: it takes a size and returns bytes, b"" at the end."""

    def __init__(self, receive: Callable[[int], bytes]) -> None:
        self._receive = receive
        self._pending = b""

    def next(self) -> bytes | None:
        """
        Return the next line, None at the end.

        Raises:
            InvalidRequestError: it is longer than `LINE_LENGTH_MAX`.

        """
        while b"\n" not in self._pending:
            if len(self._pending) > LINE_LENGTH_MAX:
                raise InvalidRequestError(f"a line of over {LINE_LENGTH_MAX} bytes")
            chunk = self._receive(_CHUNK)
            if not chunk:
                return None  # what is left is half a line
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        return line


def encode(message: Mapping[str, Any]) -> bytes:
    """
    Return *message* as a line.

    Raises:
        InvalidRequestError: it is too long for one.

    """
    line = msgspec.json.encode(message) + b"\n"
    if len(line) > LINE_LENGTH_MAX:
        raise InvalidRequestError(
            f"a message of {len(line)} bytes to another node; {LINE_LENGTH_MAX} at most"
        )
    return line


def decode(line: bytes) -> dict[str, Any]:
    """
    Return the object in *line*.

    Raises:
        InvalidRequestError: it holds none.

    """
    try:
        message = from_json(line, dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequestError(f"a line that is no JSON object: {error}") from error
    return message


class ErrorFields(msgspec.Struct, frozen=True):
    """An error on its way."""

    code: _Code
    cause: str
    hint: str = ""
    transient: bool = False
    exit_code: _Failure = 1

    @classmethod
    def of(cls, error: RemoraError) -> ErrorFields:
        """Return *error* as fields, of which `as_error` makes an error again."""
        return cls(
            error.code, error.cause, error.hint, error.transient, error.exit_code
        )


def error_as_json(error: RemoraError) -> dict[str, Any]:
    """Return *error* as fields, of which `error_from_json` makes an error again."""
    fields: dict[str, Any] = msgspec.to_builtins(ErrorFields.of(error))
    return fields


def error_from_json(fields: object) -> RemoteError:
    """Return the error that *fields* tell of, even if they have any other form."""
    try:
        return as_error(from_objects(fields, ErrorFields))
    except msgspec.ValidationError:
        return as_error(ErrorFields("internal", f"an error that is none: {fields!r}"))


def as_error(said: ErrorFields) -> RemoteError:
    """Return the error that was said."""
    error = RemoteError(said.code, said.cause, hint=said.hint, exit_code=said.exit_code)
    error.transient = said.transient
    return error


def read_answer(request: str, result: object) -> dict[str, Any]:
    """
    Return what another node has answered to *request*, {} if it is no object.

    Raises:
        RemoteError: it lacks what it has to have.

    """
    answer = result if isinstance(result, dict) else {}
    if form := _ANSWERS.get(request):
        try:
            from_objects(answer, form)
        except msgspec.ValidationError as error:
            why = f"its answer to '{request}' cannot be read: {error}"
            raise RemoteError("internal", why, hint="", exit_code=1) from None
    return answer


def read_request(message: Mapping[str, Any], kind: type[Request]) -> Request:
    """
    Return another node's *message* as a *kind* of request.

    Raises:
        InvalidRequestError: it is something else.

    """
    try:
        return from_objects(message, kind)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(f"the request cannot be read: {error}") from None
