"""The mark of a store into which records are being loaded; see `dumping.py`."""

from __future__ import annotations

from typing import Final

from plugin.errors import StoreError
from plugin.store.base import Store

LOADING: Final = "loading"


def refuse_loading(store: Store) -> None:
    """
    Raise `StoreError` while a load has not finished.

    A daemon must not work with half of the records: it asks at its start, and a node
    of a cluster each time that it registers.
    """
    if store.get(LOADING) is not None:
        raise StoreError(
            "the records are being restored from a dump, or that broke off",
            hint="wait for its end, or repeat: remora cluster load FILE",
        )
