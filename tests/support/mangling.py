"""Bytes that nobody should have written: good ones, mangled, and any others."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

# What has broken decoders elsewhere.
TOKENS = (
    *(b"../../x", b"/etc/x", b"\0", b"\n", b"\xff\xfe", b"\\u0000", b"\xe2\x80\xa8"),
    *(b"1e999", b"-1", b"9" * 400, b"NaN", b"null", b"[]", b"{}", b'""', b"true"),
    *(b"[" * 3000, b'{"a":' * 3000, b"\x93" * 3000, b"\xdf\xff\xff\xff\xff"),
    *(b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"${volume.name}", b"%s%n", b" " * 5000),
)
WORDS = ("", ".", "..", "../x", "a/b", "a\nb", "\0", "x" * 5000, "\ud800", "é", "-o")
_NUMBERS = (-1, 0, 1, 2**31, 2**63 - 1, 2**63, 2**64, 10**400, 1.5, -1e308)
# Whoever prints the strategy does not print these.
_tokens = st.integers(0, len(TOKENS) - 1).map(TOKENS.__getitem__)
_values = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from(_NUMBERS)
    | st.sampled_from(WORDS)
    | st.integers()
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=8) | st.sampled_from(WORDS), inner)
    ),
    max_leaves=6,
)


@st.composite
def mangled(draw: st.DrawFn, seed: bytes) -> bytes:
    """Return *seed* with some places cut, changed, doubled or filled."""
    content = bytearray(seed)
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(content)))
        end = draw(st.integers(begin, min(len(content), begin + 16)))
        content[begin:end] = draw(
            _tokens | st.binary(max_size=8) | st.just(bytes(content[begin:end] * 2))
        )
    return bytes(content)


@st.composite
def replaced(draw: st.DrawFn, seed: bytes) -> bytes:
    """Return the JSON *seed* with some of its values and keys replaced by any."""
    found = json.loads(seed)
    for _ in range(draw(st.integers(1, 3))):
        found = _replaced(draw, found)
    return json.dumps(found).encode()


def _replaced(draw: st.DrawFn, value: Any) -> Any:
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(value)))
        kept = {each: value[each] for each in value if each != key}
        if draw(st.integers(0, 4)):
            return {**kept, key: _replaced(draw, value[key])}
        return {**kept, draw(st.sampled_from(WORDS)): value[key]}
    if isinstance(value, list) and value and draw(st.booleans()):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], _replaced(draw, value[at]), *value[at + 1 :]]
    return draw(_values)


def hostile(
    *seeds: bytes, finish: Callable[[bytes], bytes] = lambda content: content
) -> st.SearchStrategy[bytes]:
    """Return the strategy of what is made of *seeds*; *finish* makes sums right."""
    made = [st.binary(max_size=200), _tokens]
    for seed in seeds:
        made += [st.just(seed), mangled(seed)]
        if seed[:1] in b"{[" and b"\n" not in seed:
            made += [replaced(seed), replaced(seed)]
    return st.one_of(made).map(finish) | st.one_of(made)
