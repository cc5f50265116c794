"""
The backend `nfs`: a volume is a directory of an NFS export.

The daemon itself never touches a path on NFS, because a dead server stops whoever does.
Commands that can be killed do: `mount.nfs`, and the processes of `agent`.
"""
