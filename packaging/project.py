#!/usr/bin/python3
"""
Lay out this project's own packages and its command.

    project.py DIRECTORY --command FILE --interpreter PATH [--link]

copies the packages that pyproject.toml names into DIRECTORY and writes the command.
With --link it only writes down there where the checkout is, whose files are then run.
Both install forms and the checkout's own environment use it. It stands in for building
a wheel, which would need a build backend that no lock file covers, and would write into
the source tree.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# -I: nothing of the caller's environment or home directory decides what root imports.
COMMAND = """\
{first_line}
{defaults}import sys

from {module} import {function}

sys.exit({function}())
"""
# For an interpreter whose path a first line cannot have: Python sees a string there.
LAUNCH = """\
#!/bin/sh
'''exec' {interpreter} -I "$0" "$@"
' '''"""
DEFAULTS = """\
import os

for name, value in {defaults}.items():
    os.environ.setdefault(name, value)
"""


def _first_line(interpreter: str) -> str:
    """Return how the command begins, so that *interpreter* runs it."""
    if any(character.isspace() for character in interpreter):
        return LAUNCH.format(interpreter=shlex.quote(interpreter))
    return f"#!{interpreter} -I"


def install(
    site: Path,
    command: Path,
    interpreter: str,
    defaults: Mapping[str, str] | None = None,
    *,
    link: bool = False,
) -> None:
    """
    Bring the packages to *site* and write the executable *command*.

    With *link* Python finds them in the checkout; else they are copied. The command
    sets the environment variables of *defaults* that its caller has not set.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    settings = project["tool"]["setuptools"]
    if link:
        (site / "remora.pth").write_text(f"{ROOT}\n", encoding="utf-8")
    for package in [] if link else settings["packages"]:
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
            first_line=_first_line(interpreter),
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
    parser.add_argument("--link", action="store_true")
    arguments = parser.parse_args()
    install(
        arguments.site, arguments.command, arguments.interpreter, link=arguments.link
    )


if __name__ == "__main__":
    main()
