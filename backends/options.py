"""Option values: from what users write to one canonical spelling of each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from backends import foreign_options
from backends.errors import InvalidRequestError

Parser = Callable[[str], str]

# Binary multiples, as `docker run --memory` and `ls -h` use them; "G", "Gi", "GB" and
# "GiB" all mean 2**30, because nobody who types 10G wants to be told of the difference.
_SIZE: Final = re.compile(r"([0-9]{1,15})\s*(?:([kmgtp])i?)?b?", re.IGNORECASE)
_SIZE_EXPONENT: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_SIZE_LIMIT_MIN: Final = 1024**2
_DURATION: Final = re.compile(r"([0-9]{1,9})(ms|s|m|h|d)?")
_DURATION_MS: Final = {
    "ms": 1,
    "s": 1000,
    "m": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
}
# Taken by the daemon before a backend sees the rest; valid with every backend.
COMMON_KEYS: Final = ("backend", "profile")
# What was given and means nothing here: told, never compared.
IGNORED: Final = "ignored"
# What a copy of a volume does not take over from it, unless it is told to.
NOT_COPIED: Final = ("group",)
# Stands for every option in a list of those that are allowed.
ALL_OPTIONS: Final = "*"
_ID_MAX: Final = 2**32 - 2
NODE_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")


def parse_options(
    raw: Mapping[str, str],
    parsers: Mapping[str, Parser],
    *,
    backend: str,
    also: Iterable[str] = (),
) -> dict[str, str]:
    """
    Return *raw* with every value in canonical form, keys sorted and as in *parsers*.

    *also* are valid keys that the backend has taken care of before.

    Raises:
        InvalidRequestError: an unknown key, or a value its parser refuses.

    """
    spelling = {key.lower(): key for key in parsers}
    parsed = {}
    for key, value in sorted(raw.items()):
        canonical = spelling.get(key.lower())
        if canonical is None:
            raise InvalidRequestError(
                f"unknown option '{key[:64]}' for backend '{backend}'",
                hint=foreign_options.hint(key, {*parsers, *also, *COMMON_KEYS}),
            )
        try:
            parsed[canonical] = parsers[canonical](value.strip())
        except ValueError as error:
            raise InvalidRequestError(
                f"option '{key}': {error}, not '{value[:64]}'"
            ) from None
    return parsed


def differences(asked: Mapping[str, str], stored: Mapping[str, str]) -> str:
    """Return how two sets of options differ, for people; "" if they do not."""
    return ", ".join(
        f"{key} is {stored.get(key, 'not set')}, asked for {asked.get(key, 'not set')}"
        for key in sorted({*asked, *stored})
        if asked.get(key) != stored.get(key)
    )


def octal_mode(text: str) -> str:
    """
    Return permission bits as four octal digits.

    YAML reads 0777 without quotes as the number 511, and hands "511" on. So who wants a
    mode in which the owner may not do all has to write the zero.
    """
    in_quotes = (
        f"must be in quotes in YAML, which reads {int(text):04o} as {text}"
        if re.fullmatch("[1-9][0-9]{0,3}", text)
        else ""
    )
    if not re.fullmatch(r"0?o?[0-7]{3,4}", text):
        raise ValueError(in_quotes or "must be octal permissions such as 0750")
    mode = int(text.replace("o", ""), 8)
    if in_quotes and mode & 0o700 != 0o700:
        raise ValueError(f"{in_quotes}; if {text} is meant, write 0{text}")
    return f"{mode:04o}"


def numeric_id(text: str) -> str:
    """Return a user's or group's number."""
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) > _ID_MAX:
        raise ValueError("must be a numeric id such as 1000")
    return str(int(text))


def size_bytes(text: str) -> str:
    """Return a size in bytes."""
    match = _SIZE.fullmatch(text)
    if match is None or int(match[1]) == 0:
        raise ValueError("must be a size such as 10G or 512M")
    return str(int(match[1]) * 1024 ** _SIZE_EXPONENT[(match[2] or "").lower()])


def require_usable_size(options: Mapping[str, str]) -> None:
    """
    Raise InvalidRequestError if the `size` that a new volume is given holds nothing.

    REX-Ray and others have gigabytes where a number has no unit. No parser refuses it:
    an older version has made such volumes, which are found, and recorded, again.
    """
    size = options.get("size", "")
    if size and int(size) < _SIZE_LIMIT_MIN:
        raise InvalidRequestError(
            f"option 'size': must be 1M or more, not {size} bytes",
            hint=f"without a unit it is bytes: write {size}GiB if gigabytes are meant",
        )


def duration(text: str) -> str:
    """Return a duration as seconds ("10s") or, where needed, milliseconds."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError("must be a duration such as 10s, 500ms or 5m")
    value_ms = int(match[1]) * _DURATION_MS[match[2] or "s"]
    if value_ms == 0:
        raise ValueError("must be a duration above zero")
    return f"{value_ms // 1000}s" if value_ms % 1000 == 0 else f"{value_ms}ms"


def seconds(canonical: str) -> float:
    """Return the seconds of a duration in the form that `duration` returns."""
    if canonical.endswith("ms"):
        return int(canonical.removesuffix("ms")) / 1000
    return float(canonical.removesuffix("s"))


def whole_number(low: int, high: int) -> Parser:
    """Return a parser for whole numbers from *low* to *high*."""

    def parse(text: str) -> str:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return str(int(text))

    return parse


def one_of(*choices: str) -> Parser:
    """Return a parser for one word of *choices*."""

    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return text

    return parse


def node_names(text: str) -> str:
    """Return a comma-separated list of node names, sorted, each once."""
    names = [name.strip() for name in text.split(",")]
    if not all(NODE_NAME.fullmatch(name) for name in names):
        raise ValueError("must be node names separated by commas")
    return ",".join(sorted(set(names)))


def group_name(text: str) -> str:
    """Return the name of a group of volumes."""
    if not NODE_NAME.fullmatch(text):
        raise ValueError(
            "must be a name of up to 63 letters, digits, '_', '.' and '-' that begins "
            "with a letter or digit"
        )
    return text


def boolean(text: str) -> str:
    """Return "true" or "false"."""
    words = {"true": "true", "1": "true", "yes": "true", "": "true"}
    words |= {"false": "false", "0": "false", "no": "false"}
    if text.lower() not in words:
        raise ValueError("must be true or false")
    return words[text.lower()]


def source_volume(text: str) -> str:
    """Return the name of a volume or of one of its snapshots, `volume@snapshot`."""
    if not re.fullmatch(
        r"[a-zA-Z0-9][a-zA-Z0-9_.-]*(@[a-zA-Z0-9][a-zA-Z0-9_.-]*)?", text
    ):
        raise ValueError("must be VOLUME or VOLUME@SNAPSHOT")
    return text


def volume_name(text: str) -> str:
    """Return the name of a volume."""
    if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}", text):
        raise ValueError(
            "must be the name of a volume (of a snapshot make a clone: "
            "from=VOLUME@SNAPSHOT)"
        )
    return text


def refused(why: str) -> Parser:
    """Return a parser that takes nothing, and says *why*."""

    def parse(_text: str) -> str:
        raise ValueError(why)

    return parse
