"""The daemon's errors as codes of gRPC: schedulers decide by them what they do next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import grpc

from backends.errors import RemoraError

Code = grpc.StatusCode
# A kubelet takes ABORTED and UNAVAILABLE as "it may be under way", and asks again; any
# other code as "there is nothing".
_CODES: Final[Mapping[str, grpc.StatusCode]] = {
    "invalid-request": Code.INVALID_ARGUMENT,
    "volume-not-found": Code.NOT_FOUND,
    "snapshot-not-found": Code.NOT_FOUND,
    "node-not-found": Code.NOT_FOUND,
    "path-not-found": Code.NOT_FOUND,
    "volume-exists": Code.ALREADY_EXISTS,
    "snapshot-exists": Code.ALREADY_EXISTS,
    "published-otherwise": Code.ALREADY_EXISTS,
    "one-writer": Code.FAILED_PRECONDITION,
    "owned-elsewhere": Code.FAILED_PRECONDITION,
    "in-use": Code.FAILED_PRECONDITION,
    "out-of-range": Code.OUT_OF_RANGE,
    "no-room": Code.RESOURCE_EXHAUSTED,
    "deadline": Code.ABORTED,
    "volume-busy": Code.ABORTED,
    "not-known-yet": Code.ABORTED,
    "unknown-token": Code.ABORTED,
    "store-unavailable": Code.UNAVAILABLE,
    "daemon-unreachable": Code.UNAVAILABLE,
    "peer-unreachable": Code.UNAVAILABLE,
    "fencing": Code.UNAVAILABLE,
    "silent": Code.UNAVAILABLE,
}


class CsiError(RemoraError):
    """What the driver refuses by itself; *code* is one of those above."""

    def __init__(self, code: str, cause: str, *, hint: str = "") -> None:
        super().__init__(cause, hint=hint)
        self.code = code


def invalid(cause: str, *, hint: str = "") -> CsiError:
    """Return the error for a request that can never work."""
    return CsiError("invalid-request", cause, hint=hint)


def status_of(error: RemoraError) -> grpc.StatusCode:
    """Return the code of gRPC that says what *error* says."""
    if error.code == "not-owner":
        return Code.ABORTED if error.transient else Code.FAILED_PRECONDITION
    return _CODES.get(error.code, Code.INTERNAL)
