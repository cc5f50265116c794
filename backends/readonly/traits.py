"""What the backend `readonly` is able to do; apart, for who asks without its code."""

from __future__ import annotations

from typing import Final

from backends.base import Traits

# It names the volume that is read.
OPTION: Final = "readonly_copy"
# Nobody owns such a volume, and no node has a copy of its own of it.
TRAITS: Final = Traits(reachable_from_every_node=True)
