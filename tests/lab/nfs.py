"""A real NFS server (the kernel's, versions 3 and 4.2) in a node."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from .disks import Disk
from .node import NodeSpec

if TYPE_CHECKING:
    from .node import Node

# Where the exports' paths begin. Version 4 has to show the way from its root to every
# export, and the node's own root, an overlay, cannot be exported.
ROOT = "/data/nfs"

# All but EXT4 are directories of one XFS. None lies in another: in version 4 a client
# would get there with the outer one's options.
TOP = "/export"
XFS = f"{TOP}/xfs"
SPACED = f"{TOP}/with two spaces"
QUOTA = f"{TOP}/quota"
SQUASH = f"{TOP}/squash"
EXT4 = f"{TOP}/ext4"

QUOTA_BYTES = 32 * 2**20
QUOTA_PROJECT = 42
SQUASH_OWNER = 1000

# The shortest that the kernel takes: a server that was restarted makes clients wait
# that long before they may open anything new.
GRACE_S = 10
THREADS = 8
START_DEADLINE_S = 60.0

COMMON = "rw,sync,no_subtree_check"
EXPORTS = {
    XFS: f"{COMMON},no_root_squash,fsid=1",
    EXT4: f"{COMMON},no_root_squash,fsid=2",
    QUOTA: f"{COMMON},no_root_squash,fsid=3",
    SQUASH: f"{COMMON},root_squash,fsid=4",
    SPACED: f"{COMMON},no_root_squash,fsid=5",
}

# How a node has to be made to become a server.
SERVER = NodeSpec(
    "server",
    disks=(
        Disk("xfs", at=ROOT + TOP, options="prjquota"),
        Disk("ext4", at=ROOT + EXT4),
    ),
)

PREPARE = f"""
printf '[exports]\\nrootdir={ROOT}\\n' >> /etc/nfs.conf
cd {ROOT}{TOP}
mkdir -p xfs quota squash 'with two spaces'
chmod 0777 xfs ext4 quota 'with two spaces'
chown {SQUASH_OWNER}:{SQUASH_OWNER} squash
chmod 0755 squash
quota() {{ xfs_quota -x -c "$1" {ROOT}{TOP}; }}
quota 'project -s -p {ROOT}{QUOTA} {QUOTA_PROJECT}' >/dev/null
quota 'limit -p bhard={QUOTA_BYTES} {QUOTA_PROJECT}'
# The next thing may be a power failure.
sync
"""
# nfsdcld keeps the records of clients without which nobody could reclaim, after a
# restart, what he had open; it outlives `STOP`, its records a power failure.
MOUNT_KERNEL_INTERFACE = """
modprobe nfsd
mountpoint -q /proc/fs/nfsd || mount -t nfsd nfsd /proc/fs/nfsd
mkdir -p /run/rpc_pipefs /var/lib/nfs/nfsdcld
mountpoint -q /run/rpc_pipefs || mount -t rpc_pipefs sunrpc /run/rpc_pipefs
pidof nfsdcld >/dev/null || nfsdcld
"""
START = f"""
exportfs -ra
pidof rpc.mountd >/dev/null || rpc.mountd
rpc.nfsd --lease-time {GRACE_S} --grace-time {{grace_s}} {THREADS}
"""
STOP = """
rpc.nfsd 0
pid=$(pidof rpc.mountd) && kill $pid
while pidof rpc.mountd >/dev/null; do sleep 0.05; done
"""
# Takes a mount away without touching it: orderly, by force, at last only its name.
UNMOUNT = (
    "/usr/bin/python3",
    "-ISEc",
    """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
for flags in (0, 1, 1, 2):
    if libc.umount2(sys.argv[1].encode(), flags) == 0:
        sys.exit()
sys.exit(f"umount {sys.argv[1]}: errno {ctypes.get_errno()}")
""",
)
UNMOUNT_DEADLINE_S = 60.0


class NfsServer:
    """The server's exports and its life; its power and its network are the node's."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.exports = dict(EXPORTS)
        # Whoever has not reclaimed what he had open when this is over has lost it.
        self.grace_s = GRACE_S
        self.node.on_boot.append(self.start_nfs)

    # Addresses

    @property
    def ipv4(self) -> str:
        """The server's IPv4 address."""
        return self.node.ipv4

    @property
    def ipv6(self) -> str:
        """The server's IPv6 address, without brackets."""
        return self.node.ipv6

    def local(self, path: str) -> str:
        """Return where *path*, as a client names it, lies on the server."""
        return ROOT + path

    # Life

    def prepare(self) -> None:
        """Make the directories that are exported, and the quota; once per server."""
        self.node.run(PREPARE)

    def start_nfs(self) -> None:
        """Serve what `exports` lists; `boot` does it too."""
        self._write_exports()
        start = START.format(grace_s=self.grace_s)
        self.node.run(MOUNT_KERNEL_INTERFACE + start, timeout_s=START_DEADLINE_S)

    def stop_nfs(self) -> None:
        """Stop the server orderly: clients are refused from now on."""
        self.node.run(STOP, timeout_s=START_DEADLINE_S)

    def power_off(self) -> None:
        """Fail the server's power."""
        self.node.power_off()

    def boot(self) -> None:
        """Switch the server on again; return when it serves."""
        self.node.boot()

    def cut(self) -> None:
        """Silently drop every packet from and to the server."""
        self.node.cut()

    def heal(self) -> None:
        """Let the server's packets through again; it can be reached on return."""
        self.node.heal()
        # A node that asked in vain where the server is would give up a moment later,
        # and refuse what it began meanwhile ("No route to host").
        for node in self.node.lab.nodes.values():
            if node.powered and node is not self.node:
                node.run(["ip", "neighbour", "flush", "all"])

    # Exports

    def export(self, path: str, options: str | None = None) -> None:
        """Export *path*, with its former options if *options* are not given."""
        self.exports[path] = options or self.exports.get(path) or EXPORTS[path]
        self._apply()

    def unexport(self, path: str) -> None:
        """Take *path* out of the exports; clients that have it mounted get ESTALE."""
        del self.exports[path]
        self._apply()

    def export_new(self, path: str, *, options: str = "no_root_squash") -> str:
        """Make the directory *path* below an export's disk, export it and return it."""
        self.node.run(["sh", "-euc", 'mkdir -p "$1"; sync', "new", self.local(path)])
        number = 100 + len(self.exports)
        self.export(path, f"{COMMON},{options},fsid={number}")
        return path

    def restore(self) -> None:
        """Bring the server and its first exports back; files on them stay."""
        self.grace_s = GRACE_S
        if self.exports != EXPORTS:
            self.exports = dict(EXPORTS)
            self._apply()
        threads = self.node.run(["cat", "/proc/fs/nfsd/threads"], check=False).stdout
        if threads.strip() in {"", "0"}:
            self.start_nfs()

    def run(self, command: str | list[str], **arguments: object) -> str:
        """Return what *command* prints, run on the server."""
        return self.node.run(command, **arguments).stdout  # type: ignore[arg-type]

    def _apply(self) -> None:
        self._write_exports()
        self.node.run(["exportfs", "-ra"])

    def _write_exports(self) -> None:
        lines = [f'"{path}" *({options})' for path, options in self.exports.items()]
        self.node.put("".join(line + "\n" for line in lines), "/etc/exports")


def started_server(node: Node) -> NfsServer:
    """Return the NFS server on *node*, made and serving."""
    server = NfsServer(node)
    server.prepare()
    server.start_nfs()
    return server


def mount(
    node: Node,
    source: str,
    at: str,
    options: str = "",
    *,
    timeout_s: float = 30.0,
) -> str:
    """Mount the export *source* at *at* in *node* (made if missing); return *at*."""
    quoted = " ".join(shlex.quote(each) for each in (source, at))
    chosen = f"-o {shlex.quote(options)}" if options else ""
    node.run(
        f"mkdir -p {shlex.quote(at)}; mount.nfs {quoted} {chosen}", timeout_s=timeout_s
    )
    return at


def unmount_all(node: Node) -> None:
    """Take every NFS mount of *node* away, also one whose server is dead."""
    for entry in reversed(node.mounts()):
        if entry.fs_type in {"nfs", "nfs4"}:
            node.run([*UNMOUNT, entry.mount_point], timeout_s=UNMOUNT_DEADLINE_S)
