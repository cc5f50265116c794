"""
Lists page by page: a token names the last entry that was told.

So what goes in between is missed by nobody, and what comes is at the end: entries are
sorted by the time at which they were made.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import TypeVar

from plugin.api.csi.errors import CsiError, invalid

Entry = TypeVar("Entry")
_MARK = b"after:"


def page(
    entries: Sequence[Entry],
    key: Callable[[Entry], str],
    *,
    token: str,
    entries_max: int,
) -> tuple[Sequence[Entry], str]:
    """
    Return the entries behind *token*, and the token of the next page, "" at the end.

    Raises:
        CsiError: *token* is none of ours, or the number is none.

    """
    if entries_max < 0:
        raise invalid("max_entries is below zero")
    after = _read(token)
    left = [each for each in entries if key(each) > after] if after else [*entries]
    if not entries_max or len(left) <= entries_max:
        return left, ""
    told = left[:entries_max]
    return told, _token(key(told[-1]))


def _token(last: str) -> str:
    return base64.urlsafe_b64encode(_MARK + last.encode()).decode()


def _read(token: str) -> str:
    if not token:
        return ""
    try:
        content = base64.b64decode(token.encode(), altchars=b"-_", validate=True)
        if content.startswith(_MARK):
            return content.removeprefix(_MARK).decode()
    except (binascii.Error, UnicodeError):
        pass
    raise CsiError(
        "unknown-token", "starting_token is none of ours", hint="list from the start"
    )
