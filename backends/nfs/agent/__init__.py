"""
What runs in processes of its own, because a dead NFS server may keep it for ever.

Nothing here may import more than the standard library and this package.
"""

import sys
from pathlib import Path
from types import ModuleType
from typing import Final

_ROOT: Final = str(Path(__file__).resolve().parents[3])


def command(module: ModuleType, *arguments: str) -> list[str]:
    """Return the command that runs `main` of *module*, one of this package's."""
    script = (
        f"import sys; sys.path.insert(0, {_ROOT!r}); "
        f"from {module.__name__} import main; main()"
    )
    # -I -S: no site-packages and nobody's environment: half the time to start.
    return [sys.executable, "-IS", "-c", script, *arguments]
