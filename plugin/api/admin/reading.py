"""What stands in the body of a request on the control socket."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from flask import request

from backends.errors import InvalidRequestError
from backends.system.decoding import from_json

Body = TypeVar("Body")


def read_body(kind: type[Body]) -> Body:
    """
    Return the body of the request that is being answered.

    Raises:
        InvalidRequestError: it is no *kind*.

    """
    try:
        return from_json(request.get_data(), kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(f"the request cannot be read: {error}") from None
