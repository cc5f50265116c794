"""Ids of volumes as records have them, for tests that call volumes by a word."""

from __future__ import annotations

import uuid

_SPACE = uuid.UUID("5b0a9a55-2a0e-4a0c-9b39-0f8f7c6b6d11")


def id_of(word: str) -> str:
    """Return the id that stands for *word*, always the same."""
    return str(uuid.uuid5(_SPACE, word))
