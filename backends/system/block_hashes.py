"""
Hashes of blocks that nobody can aim at: each index has a random key of its own.

What others write is compared with what they wrote before by tags alone. With GMAC and
Poly1305 as keyed hashes two different blocks have one tag once in 2^87 times, whoever
chose them, as long as nobody sees a tag. Both are several times as fast as a hash
without a key; GMAC is the faster one where the processor helps.

Source: NIST SP 800-38D, RFC 8439.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.poly1305 import Poly1305

from backends.system.clock import monotonic_s
from backends.system.index_file import BLOCKS, CHUNK_BYTES, KEY_BYTES
from backends.system.ranges import BLOCK_BYTES

_GMAC, _POLY1305 = 1, 2
# The same for all: a tag is compared with tags of the same key, and with nothing else.
_NONCE: Final = bytes(12)
# So small, and so often, that a busy machine does not choose for us.
_TRIES, _TRIED_BYTES = 32, 65536

Hash = Callable[[memoryview], bytes]


class BlockHashes:
    """Makes the tags of an index that was made with *hashing* and *key*."""

    def __init__(self, hashing: int, key: bytes) -> None:
        self._hash = _hash_function(hashing, key)
        zeros = memoryview(bytes(CHUNK_BYTES))
        self._of_zeros = self._hash(zeros)
        self._of_zero_blocks = self._hash(zeros[:BLOCK_BYTES]) * BLOCKS

    def of_chunk(self, chunk: memoryview) -> bytes:
        """Return the tag of a whole chunk."""
        return _tags(self._hash(chunk), self._of_zeros)

    def of_blocks(self, blocks: memoryview) -> bytes:
        """Return the tags of whole *blocks*, of one chunk at most, one by one."""
        tag, places = self._hash, range(0, len(blocks), BLOCK_BYTES)
        found = b"".join([tag(blocks[at : at + BLOCK_BYTES]) for at in places])
        return _tags(found, self._of_zero_blocks[: len(found)])


def fastest() -> int:
    """Return the kind of hash that is the fastest on this machine."""
    return min((_GMAC, _POLY1305), key=_time_of)


def _time_of(hashing: int) -> float:
    """Return how long a piece takes when no other program gets in between."""
    tag, piece = _hash_function(hashing, os.urandom(KEY_BYTES)), bytes(_TRIED_BYTES)
    taken_s = []
    for _ in range(_TRIES):
        begun_s = monotonic_s()
        tag(memoryview(piece))
        taken_s.append(monotonic_s() - begun_s)
    return min(taken_s)


def _hash_function(hashing: int, key: bytes) -> Hash:
    if hashing == _GMAC:
        encrypt = AESGCM(key).encrypt
        return lambda block: encrypt(_NONCE, b"", block)
    if hashing == _POLY1305:
        generate = Poly1305.generate_tag
        return lambda block: generate(key, block)
    raise ValueError(f"no hash has the number {hashing}")


def _tags(found: bytes, of_zeros: bytes) -> bytes:
    """Return *found* with zeros for the tags of zeros."""
    one, other = (int.from_bytes(each, "little") for each in (found, of_zeros))
    return (one ^ other).to_bytes(len(found), "little")
