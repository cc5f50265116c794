"""
One archive of this node's own Remora, so that a new machine needs no network for it.

It is made of what runs here: an installed tree, or a checkout with its environment. Its
files lie as `packaging/install` lays them out. Compiled modules are copied as they are,
so it runs only where `abi` is the same.

    library/   becomes PREFIX/lib/remora, a private environment
    files/     the files elsewhere, by their whole paths
"""

from __future__ import annotations

import hashlib
import io
import platform
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, Final

import plugin
from backends.system.run import run
from plugin.errors import EnrolmentError

PYTHON: Final = "/usr/bin/python3"
UNITS: Final = ("remora.service", "remora.socket")
_UNIT_DIRECTORY: Final = "/usr/lib/systemd/system"
_LAY_OUT_DEADLINE_S: Final = 60.0
# Fast: the archive crosses a local network once.
_COMPRESSION: Final = 3


@dataclass(frozen=True, slots=True)
class _Entry:
    """A file of the archive, or a symbolic link to *content*, a text."""

    name: str
    content: Path | bytes | str
    executable: bool = False

    def data(self) -> bytes:
        """Return the content; for a link, its target."""
        if isinstance(self.content, Path):
            return self.content.read_bytes()
        if isinstance(self.content, str):
            return self.content.encode()
        return self.content


@dataclass(frozen=True, slots=True)
class Bundle:
    """
    The archive in *file*, laid out for *prefix*.

    *digest* tells contents apart. *version* is Remora's.
    """

    file: IO[bytes]
    prefix: str
    digest: str
    version: str

    @property
    def library(self) -> str:
        """Return where the private environment belongs."""
        return f"{self.prefix}/lib/remora"

    @property
    def command(self) -> str:
        """Return where the command belongs."""
        return f"{self.prefix}/bin/remora"

    def size_bytes(self) -> int:
        """Return the size of the archive."""
        return self.file.seek(0, io.SEEK_END)


def abi() -> str:
    """Return what compiled modules depend on: Python, processor and C library."""
    return str(sysconfig.get_config_var("SOABI"))


def make() -> Bundle:
    """
    Return this node's Remora.

    Raises:
        EnrolmentError: what runs here is in neither of the two forms, or is not whole.

    """
    root = Path(plugin.__file__).parents[1]
    with tempfile.TemporaryDirectory(prefix="remora-bundle-") as scratch:
        try:
            if (root / "packaging/project.py").exists():
                prefix = "/usr"
                entries = _from_checkout(root, Path(scratch))
            elif (Path(sys.prefix) / "bin/remora").exists():
                prefix = str(Path(sys.prefix).parents[1])
                entries = _from_installed(root, prefix)
            else:
                raise EnrolmentError(
                    f"the Remora in {root} can run, but not be copied to a machine",
                    hint="call it on a node with packaging/install, or in a checkout",
                )
            entries = [*_environment(prefix), *entries]
            entries.sort(key=lambda each: each.name)
            # It has no name, so that it ends with this process.
            file = tempfile.TemporaryFile(prefix="remora-bundle-")  # noqa: SIM115
            digest = _write(entries, file)
        except (OSError, metadata.PackageNotFoundError) as error:
            raise EnrolmentError(
                f"this node's Remora cannot be copied: {error}",
                hint="is it installed as a whole? make setup, or packaging/install",
            ) from error
    return Bundle(file, prefix, digest, plugin.__version__)


def _environment(prefix: str) -> Iterator[_Entry]:
    """Yield what makes the library a private environment. Source: PEP 405."""
    yield _Entry(
        "library/pyvenv.cfg",
        f"home = {Path(PYTHON).parent}\ninclude-system-site-packages = false\n"
        f"version = {platform.python_version()}\n".encode(),
    )
    yield _Entry("library/bin/python3", PYTHON)
    yield _Entry("library/bin/python", "python3")
    yield _Entry("library/lib64", "lib")
    yield _Entry(f"files{prefix}/bin/remora", f"{prefix}/lib/remora/bin/remora")


def _site() -> str:
    version = sys.version_info
    return f"library/lib/python{version.major}.{version.minor}/site-packages"


def _from_installed(site: Path, prefix: str) -> list[_Entry]:
    """Return what `packaging/install` has installed."""
    documents = Path(prefix) / "share/doc/remora"
    return [
        *_tree(site, _site()),
        _Entry("library/bin/remora", Path(sys.prefix) / "bin/remora", executable=True),
        *_tree(documents, f"files{documents}"),
        *(
            _Entry(f"files{_UNIT_DIRECTORY}/{unit}", Path(_UNIT_DIRECTORY) / unit)
            for unit in UNITS
        ),
    ]


def _from_checkout(root: Path, scratch: Path) -> list[_Entry]:
    """Return the checkout's packages, and the locked ones from its environment."""
    command = scratch / "remora"
    run(
        [
            *(sys.executable, str(root / "packaging/project.py")),
            *(str(scratch / "site"), "--command", str(command)),
            *("--interpreter", "/usr/lib/remora/bin/python3"),
        ],
        deadline_s=_LAY_OUT_DEADLINE_S,
    )
    documents = "files/usr/share/doc/remora"
    return [
        *_tree(scratch / "site", _site()),
        *_locked_packages(root / "requirements/runtime.txt"),
        _Entry("library/bin/remora", command.read_bytes(), executable=True),
        _Entry(f"{documents}/examples/remora.toml", root / "packaging/remora.toml"),
        *(
            _Entry(f"{documents}/guides/{guide.name}", guide)
            for guide in (root / "docs/guides").glob("*.md")
        ),
        *(
            _Entry(f"files{_UNIT_DIRECTORY}/{unit}", root / "systemd" / unit)
            for unit in UNITS
        ),
    ]


def _locked_packages(lock: Path) -> Iterator[_Entry]:
    """Yield the files of the packages that *lock* names, without their commands."""
    for line in lock.read_text(encoding="utf-8").splitlines():
        name, pinned, _ = line.partition("==")
        if not pinned or name.startswith(("#", " ")):
            continue
        for file in metadata.distribution(name).files or ():
            if ".." not in file.parts and "__pycache__" not in file.parts:
                yield _Entry(f"{_site()}/{file}", Path(str(file.locate())))


def _tree(directory: Path, name: str) -> Iterator[_Entry]:
    """Yield the files below *directory* without bytecode, which is made there again."""
    for path in directory.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            yield _Entry(f"{name}/{path.relative_to(directory)}", path)


def _write(entries: list[_Entry], file: IO[bytes]) -> str:
    """Write the archive to *file*; return the digest of what is in it."""
    digest = hashlib.sha256()
    # Any time would do, but tar(1) warns of 1970.
    modified_s = int(Path(plugin.__file__).stat().st_mtime)
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=_COMPRESSION) as archive:
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            data = entry.data()
            digest.update(f"{entry.name}\0{len(data)}\0".encode() + data)
            info.mtime = modified_s
            info.mode = 0o755 if entry.executable else 0o644
            if isinstance(entry.content, str):
                info.type, info.linkname = tarfile.SYMTYPE, entry.content
                archive.addfile(info)
                continue
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return digest.hexdigest()
