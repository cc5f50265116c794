"""How a file of the volume gets other attributes, while its content stays."""

from __future__ import annotations

import os

from backends.rsync.journal.entries import Entry
from backends.system.copy_file import FileCopier, attribute_names, have_same_attributes


def give_attributes(entry: Entry, target: int, like: int | None) -> None:
    """
    Give the open *target* what *entry* says, and the extended attributes of *like*.

    Without *like*, which is open, it has none. A second time changes nothing. The new
    ones fit together beside *like*, but not with one that is still an old one.
    """
    if like is None or not have_same_attributes(like, target):
        for key in attribute_names(target):
            os.removexattr(target, key)
    # In this order: chown clears set-id bits and capabilities, chmod an ACL's mask.
    status = os.fstat(target)
    if (status.st_uid, status.st_gid) != (entry.uid, entry.gid):
        os.fchown(target, entry.uid, entry.gid)
    os.fchmod(target, entry.mode)
    if like is not None:
        FileCopier().copy_extended(like, target)
    os.utime(target, ns=(status.st_atime_ns, entry.mtime_ns))
