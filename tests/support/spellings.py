"""The table of mount options as people write them, `nfs_spellings.txt`."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

_TABLE = Path(__file__).with_name("nfs_spellings.txt")


class Spelling(NamedTuple):
    """One row: options, and what becomes of them with `SERVER` for an address."""

    type: str
    device: str
    line: str
    local: str
    ours: str

    def options(self, server: str) -> dict[str, str]:
        """Return the options of a volume on *server*."""
        given = {"type": self.type, "device": self.device, "o": self.line}
        return {key: text.replace("SERVER", server) for key, text in given.items()}

    @property
    def is_mounted(self) -> bool:
        """Whether we mount it."""
        return not self.ours.startswith(("refused: ", "cannot: "))


def spellings() -> list[Spelling]:
    """Return all rows."""
    rows = _TABLE.read_text("utf-8").splitlines()
    return [Spelling(*row.split(" | ")) for row in rows if not row.startswith("#")]
