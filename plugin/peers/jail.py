"""
The root that a receiving rsync gets: one staging directory, and what it runs on.

rsync runs as root, because it must make files of any owner, and takes orders from
another machine. Whatever path that machine tricks it into (a link to /etc, a name with
`..`, a directory that becomes a link meanwhile), it ends inside this root.
"""

import os

from backends.system import mount_namespace

# Programs and their libraries: directories, or links into /usr.
_PROGRAM_DIRECTORIES = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
_MOUNT_POINT = "/run"
STAGING = "/staging"
# What the copy holds already: rsync sends only the parts of a file that differ.
BASIS = "/basis"
# The sender uses this name, too: beside the tree lie files about the commit.
TREE = "tree"


def enter(directory: str, basis: str) -> None:
    """
    Confine this process to *directory*, which becomes `STAGING`.

    All else that is visible, including *basis* at `BASIS`, cannot be written to.
    """
    mount_namespace.enter_own_mounts()
    staging = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    mount_namespace.mount_memory(_MOUNT_POINT, "mode=0755")
    for name in _PROGRAM_DIRECTORIES:
        source, target = f"/{name}", f"{_MOUNT_POINT}/{name}"
        if os.path.islink(source):
            os.symlink(os.readlink(source), target)
        elif os.path.isdir(source):
            _show(source, target)
    os.mkdir(_MOUNT_POINT + BASIS)
    _show(basis, f"{_MOUNT_POINT}{BASIS}/{TREE}")
    os.mkdir(_MOUNT_POINT + STAGING)
    mount_namespace.bind(staging, _MOUNT_POINT + STAGING)
    os.close(staging)
    mount_namespace.pivot(_MOUNT_POINT)
    mount_namespace.make_read_only("/")
    os.chdir(STAGING)


def _show(source: str, target: str) -> None:
    os.mkdir(target)
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
    descriptor = os.open(source, flags)
    mount_namespace.bind(descriptor, target, read_only=True)
    os.close(descriptor)
