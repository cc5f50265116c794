"""
The root filesystem of the managed plugin, out of Debian packages.

Packages are unpacked, never installed: no maintainer script runs, and of what they
contain only the programs named in contents.toml, the libraries these are linked with
and Python's standard library are taken. That makes it small, and the same every time.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

STDLIB: Final = "usr/lib/python3.11"
_TIMEOUT_S: Final = 900
# What of a file's path differs between Debian's packages and a merged /usr.
_MERGED: Final = ("bin/", "sbin/", "lib/", "lib64/")
_PROGRAM_FOLDERS: Final = ("usr/bin", "usr/sbin", "bin", "sbin")
# Directories that exist although nothing was put in them, with their modes.
_FOLDERS: Final = {
    "dev": 0o755,
    "etc/remora": 0o755,
    "mnt/volumes": 0o755,
    "proc": 0o555,
    "root": 0o700,
    "run/docker/plugins": 0o755,
    "run/remora": 0o700,
    "sys": 0o555,
    "tmp": 0o1777,
    "var/lib/remora": 0o700,
    "var/tmp": 0o1777,
}
_LINKS: Final = {
    "bin": "usr/bin",
    "sbin": "usr/sbin",
    "lib": "usr/lib",
    "lib64": "usr/lib64",
    "etc/os-release": "../usr/lib/os-release",
    # The host gives its configuration file together with the state directory.
    "etc/remora/remora.toml": "/var/lib/remora/remora.toml",
    "usr/bin/python3": "python3.11",
    "usr/bin/sh": "dash",
}
_ETC: Final = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "group": "root:x:0:\nnogroup:x:65534:\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}


def run(command: list[str], *, cwd: Path | None = None) -> str:
    """Return what *command* prints; its errors go to ours."""
    return subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=_TIMEOUT_S,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    ).stdout


def unpack_packages(
    target: Path, contents: dict[str, Any], sources: str | None
) -> None:
    """
    Unpack the packages and all that they depend on below *target*.

    *sources* is a file for apt that names other archives than Debian's own (the
    suite, its updates and its security updates), for instance those of one past day.
    """
    run(
        [
            "mmdebstrap",
            "--quiet",
            "--mode=root",
            "--variant=extract",
            f"--include={','.join(contents['packages'])}",
            # Which package a file is from can be told as long as these are there.
            "--skip=cleanup/apt/cache",
            contents["suite"],
            str(target),
            *([sources] if sources else []),
        ]
    )


def assemble(base: Path, target: Path, contents: dict[str, Any]) -> None:
    """
    Build the root filesystem *target* out of the packages unpacked in *base*.

    What already is in *target* gets the libraries it needs as well.
    """
    for folder, mode in _FOLDERS.items():
        (target / folder).mkdir(parents=True, exist_ok=True)
        (target / folder).chmod(mode)
    programs = {_find_program(base, name) for name in contents["programs"]}
    chosen = programs | set(contents["files"]) | set(_standard_library(base, contents))
    binaries = {base / path for path in programs}
    binaries |= {base / path for path in chosen if path.endswith(".so")}
    binaries |= {path for path in target.rglob("*.so*") if path.is_file()}
    chosen |= _libraries(base, binaries)
    for path in sorted(chosen):
        destination = target / _merged(path)
        destination.parent.mkdir(parents=True, exist_ok=True)
        # A library's link is followed: its file stands under the name looked for.
        source = base / _followed(base, path)
        shutil.copyfile(source, destination)
        # Without the set-user-id bit of mount and umount: only root lives in here.
        destination.chmod(source.stat().st_mode & 0o755)
    (target / "etc").mkdir(exist_ok=True)
    for name, text in _ETC.items():
        (target / "etc" / name).write_text(text, encoding="utf-8")
    (target / "usr/sbin").mkdir(exist_ok=True)
    for name, to in _LINKS.items():
        (target / name).symlink_to(to)
    _note_packages(base, target, chosen)


def _find_program(base: Path, name: str) -> str:
    for folder in _PROGRAM_FOLDERS:
        if (base / folder / name).is_file():
            return f"{folder}/{name}"
    raise SystemExit(f"no package listed in contents.toml has the program {name}")


def _standard_library(base: Path, contents: dict[str, Any]) -> Iterable[str]:
    unwanted = ["__pycache__", *contents["stdlib_without"]]
    root = base / STDLIB
    for folder, folders, files in os.walk(root):
        here = Path(folder).relative_to(root)
        folders[:] = [name for name in folders if not _matches(here / name, unwanted)]
        for name in files:
            if not _matches(here / name, unwanted):
                yield f"{STDLIB}/{here / name}"


def _matches(path: Path, patterns: Iterable[str]) -> bool:
    return any(
        fnmatch(str(path), pattern) or fnmatch(path.name, pattern)
        for pattern in patterns
    )


def _libraries(base: Path, binaries: Iterable[Path]) -> set[str]:
    """Return the shared libraries of *base* that *binaries* need, and the loader."""
    loader = next(
        path
        for pattern in ("lib64/ld-linux-*.so.*", "lib/ld-linux-*.so.*")
        for path in base.glob(pattern)
    )
    search = [str(path) for path in [*base.glob("lib/*-linux-gnu*")]]
    search += [str(path) for path in [*base.glob("usr/lib/*-linux-gnu*")]]
    program = base / _followed(base, str(loader.relative_to(base)))
    needed = {str(loader.relative_to(base))}
    for binary in sorted(binaries):
        with binary.open("rb") as file:
            if file.read(4) != b"\x7fELF":
                continue
        options = ["--inhibit-cache", "--library-path", ":".join(search)]
        for line in run([str(program), *options, "--list", str(binary)]).splitlines():
            found = re.search(r"=> (\S+) \(0x", line)
            if found and not Path(found[1]).is_relative_to(base):
                raise SystemExit(f"{binary}: no package listed has {line.strip()}")
            if found:
                needed.add(str(Path(found[1]).relative_to(base)))
    # Threads that are cancelled load this one by name, unseen by the loader's list.
    needed |= {str(path.relative_to(base)) for path in base.glob("lib/*/libgcc_s.so.1")}
    return needed


def _followed(base: Path, path: str) -> str:
    """Return what *path* links to, links seen as from inside *base*."""
    for _ in range(10):
        if not (base / path).is_symlink():
            return path
        # Joining an absolute target drops what stands before it, as in the root.
        link = Path("/", path).parent / (base / path).readlink()
        path = os.path.normpath(link).lstrip("/")
    raise SystemExit(f"{path}: too many links")


def _merged(path: str) -> str:
    return f"usr/{path}" if path.startswith(_MERGED) else path


def _note_packages(base: Path, target: Path, chosen: set[str]) -> None:
    """
    Keep dpkg's record and the licence of every package that files were taken from.

    Vulnerability scanners read the record.
    """
    wanted = {_merged(_followed(base, path)) for path in chosen}
    records = []
    for archive in sorted((base / "var/cache/apt/archives").glob("*.deb")):
        listed = run(["dpkg-deb", "--contents", str(archive)])
        held = {
            _merged(match[1])
            for match in re.finditer(r" \./(\S+)(?: -> .*)?$", listed, re.MULTILINE)
        }
        if not held & wanted:
            continue
        control = run(["dpkg-deb", "--field", str(archive)]).rstrip()
        records.append(f"{control}\nStatus: install ok installed\n")
        name = control.split("\n", 1)[0].removeprefix("Package: ")
        licence = base / "usr/share/doc" / name / "copyright"
        if licence.exists():
            destination = target / "usr/share/doc" / name / "copyright"
            destination.parent.mkdir(parents=True)
            shutil.copyfile(licence, destination)
    status = target / "var/lib/dpkg/status"
    status.parent.mkdir(parents=True)
    status.write_text("\n".join(records), encoding="utf-8")
