"""
The program that sshd is started through: it gives sshd an /etc and a /run of its own.

sshd lets nobody in as root where root is locked (the default of many distributions),
starts root's shell with its start-up files, obeys /etc/hosts.deny, needs a user `sshd`
and a directory in /run that the machine's own ssh.service removes when it stops. None
of that is ours to change, so our sshd sees none of it.

It is process 1 of a new process and mount namespace and uses the standard library only.
So when sshd ends, every session ends, and all that sessions have started.
"""

import os
import sys

from backends.system import mount_namespace

# sshd confines its process that talks to strangers to this. Source: sshd(8), FILES.
_EMPTY_DIRECTORY = "/run/sshd"
# An id that Debian gives to nobody and that systemd does not give out.
_SSHD_USER_ID = 60742
_ETC = {
    "passwd": "root:x:0:0:root:/:/bin/sh\n"
    f"sshd:x:{_SSHD_USER_ID}:{_SSHD_USER_ID}:sshd:{_EMPTY_DIRECTORY}:/bin/false\n",
    "group": f"root:x:0:\nsshd:x:{_SSHD_USER_ID}:\n",
    # No password fits, but the account is not locked ("!").
    "shadow": "root:*:1::::::\nsshd:*:1::::::\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files\n",
}
# It tells where libraries are; those outside the standard places need it.
_LIBRARIES = "/etc/ld.so.cache"


def main() -> None:
    """
    Become sshd (argument 1) with a configuration (2).

    Of /run only the directory of argument 3 stays visible. Mounts below the directories
    of the other arguments are detached: if they stayed here, volumes that the daemon
    has unmounted would stay mounted in this namespace.
    """
    program, configuration, kept, *let_go = sys.argv[1:]
    for directory in let_go:
        mount_namespace.detach_below(os.path.realpath(directory))
    _replace_etc()
    _replace_run(kept)
    os.execv(program, [program, "-D", "-e", "-f", configuration])


def _replace_etc() -> None:
    libraries = b""
    if os.path.exists(_LIBRARIES):
        with open(_LIBRARIES, "rb") as file:
            libraries = file.read()
    mount_namespace.mount_memory("/etc", "mode=0755")
    for name, text in _ETC.items():
        with open(f"/etc/{name}", "w", encoding="ascii") as file:
            file.write(text)
    if libraries:
        with open(_LIBRARIES, "wb") as file:
            file.write(libraries)
    mount_namespace.restrict("/etc", read_only=True)


def _replace_run(kept: str) -> None:
    """Empty /run, but for *kept*, the directory of the daemon's sockets."""
    kept = os.path.realpath(kept)
    descriptor = os.open(kept, os.O_PATH | os.O_DIRECTORY)
    mount_namespace.mount_memory("/run", "mode=0755")
    os.mkdir(_EMPTY_DIRECTORY, 0o755)
    if kept.startswith("/run/"):
        os.makedirs(kept)
        mount_namespace.bind(descriptor, kept)
    mount_namespace.restrict("/run", read_only=True)
    os.close(descriptor)
