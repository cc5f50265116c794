"""What the backend `nfs` is able to do; apart, for who asks without its code."""

from __future__ import annotations

from typing import Final

from backends.base import Traits

TRAITS: Final = Traits(
    reachable_from_every_node=True,
    catalogue_on_storage=True,
    storage_options=("server", "share"),
)
