"""Debian's archive, from where this machine's own apt gets its packages."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

DEADLINE_S = 30.0


@functools.cache
def debian_archive() -> str:
    """
    Return the address of Debian's archive, with all suites below it.

    REMORA_TESTS_MIRROR in the environment wins over what apt is told.

    Raises:
        RuntimeError: apt knows of no archive with this machine's release.
    Source: apt-get(8), indextargets.
    """
    if given := os.environ.get("REMORA_TESTS_MIRROR"):
        return given
    release = _release()
    form = "$(ORIGIN) $(CODENAME) $(REPO_URI)"
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", form, "Created-By: Packages"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    for line in listed.stdout.splitlines():
        origin, codename, address = line.split(maxsplit=2)
        # A list of mirrors, as cloud images have it, is apt's alone: its first one.
        if address.startswith("mirror+file:"):
            lines = Path(address.removeprefix("mirror+file:").rstrip("/")).read_text()
            address = lines.split(maxsplit=1)[0]
        usable = address.startswith(("http://", "https://", "file:"))
        if usable and (origin, codename) == ("Debian", release):
            return address.rstrip("/")
    raise RuntimeError(
        f"apt knows of no archive of Debian {release}: apt-get update, "
        "or name one in REMORA_TESTS_MIRROR"
    )


def _release() -> str:
    lines = Path("/etc/os-release").read_text().splitlines()
    facts = dict(line.split("=", 1) for line in lines if "=" in line)
    return facts.get("VERSION_CODENAME", "").strip('"')
