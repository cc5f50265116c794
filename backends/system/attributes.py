"""
Which extended attributes are a file's content: the others belong to its filesystem.

XFS shows an ACL a second time, as `trusted.SGI_ACL_FILE`: elsewhere that is an ordinary
attribute, which nobody keeps up with the ACL. btrfs shows properties (`btrfs.*`), which
no other one takes. What is named `user.rsync.%` no rsync carries.

Standard library alone: programs that start in a bare Python use it.
Source: xattr(7), fs/xfs/xfs_xattr.c, btrfs-property(8), rsync, xattrs.c.
"""

# Kept by the filesystem itself, or another name of the mode.
_NOT_COPIED = frozenset({"system.nfs4_acl", "system.nfs4_dacl", "security.selinux"})
_PREFIXES_NOT_COPIED = ("trusted.SGI_ACL_", "btrfs.", "user.rsync.%")
# For both ends of rsync: what is excluded is neither sent nor removed. ACLs, of the
# system's attributes, it carries by themselves.
RSYNC_FILTERS = tuple(
    f"--filter=-x {prefix}*" for prefix in ("system.", *_PREFIXES_NOT_COPIED)
)


def is_copied(key: str) -> bool:
    """Return whether a copy of a file has the attribute *key* as well."""
    return key not in _NOT_COPIED and not key.startswith(_PREFIXES_NOT_COPIED)
