#!/usr/bin/python3
"""
Lay out this project's own packages and its command.

    project.py DIRECTORY --command FILE --interpreter PATH

copies the packages that pyproject.toml names into DIRECTORY and writes the command.
Both install forms use it. It stands in for building a wheel, which would need a build
backend that no lock file covers, and would write into the source tree.
"""

from __future__ import annotations

import argparse
import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# -I: nothing of the caller's environment or home directory decides what root imports.
COMMAND = """\
#!{interpreter} -I
{defaults}import sys

from {module} import {function}

sys.exit({function}())
"""
DEFAULTS = """\
import os

for name, value in {defaults}.items():
    os.environ.setdefault(name, value)
"""


def install(
    site: Path,
    command: Path,
    interpreter: str,
    defaults: Mapping[str, str] | None = None,
) -> None:
    """
    Copy the packages to *site* and write the executable *command*.

    It sets the environment variables of *defaults* that its caller has not set.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    settings = project["tool"]["setuptools"]
    for package in settings["packages"]:
        source = ROOT / package.replace(".", "/")
        target = site / package.replace(".", "/")
        target.mkdir(parents=True, exist_ok=True)
        patterns = ["*.py", *settings.get("package-data", {}).get(package, [])]
        for pattern in patterns:
            for file in sorted(source.glob(pattern)):
                shutil.copyfile(file, target / file.name)
    module, _, function = project["project"]["scripts"]["remora"].partition(":")
    command.parent.mkdir(parents=True, exist_ok=True)
    command.write_text(
        COMMAND.format(
            interpreter=interpreter,
            module=module,
            function=function,
            defaults=DEFAULTS.format(defaults=dict(defaults)) if defaults else "",
        ),
        encoding="utf-8",
    )
    command.chmod(0o755)


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description="Lay out the packages and the command")
    parser.add_argument("site", type=Path)
    parser.add_argument("--command", type=Path, required=True)
    parser.add_argument("--interpreter", required=True)
    arguments = parser.parse_args()
    install(arguments.site, arguments.command, arguments.interpreter)


if __name__ == "__main__":
    main()
