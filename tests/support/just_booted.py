"""A daemon whose machine was switched on just now, as its boot clock has it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.protocol.node import Node


def just_booted(node: Node) -> None:
    """Let each daemon of *node* find that its machine was switched on just now."""
    booted_s = -int(time.clock_gettime(time.CLOCK_BOOTTIME))
    namespace = ("unshare", "--time", "--boottime", str(booted_s), "--")
    remora = node.remora
    node.remora = lambda *verb: [*namespace, *remora(*verb)]
