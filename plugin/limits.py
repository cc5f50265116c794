"""Every bound of the daemon, in one place, with the reason for each figure."""

from __future__ import annotations

from typing import Final

# Docker gives Create and Mount 120 s, every other call 60 s (a managed plugin 30 s by
# default, `docker plugin enable --timeout`). We answer before the engine gives up, so
# that it never holds a mount that we rolled back, nor the reverse.
ENGINE_LONG_TIMEOUT_S: Final = 120.0
ENGINE_SHORT_TIMEOUT_S: Final = 60.0
LONG_DEADLINE_S: Final = 100.0
SHORT_DEADLINE_S: Final = 50.0

# Slow operations (Create, Mount, Unmount, Remove) under way at once. An engine starts
# and stops all its containers at once: what comes beyond that waits for its turn, each
# call in a thread of its own. The server has more threads than calls can take, so that
# one is always free for Get, List and Path.
OPERATIONS_MAX: Final = 48
CALLS_MAX: Final = 256
SERVER_THREADS: Final = 288
# They are started when calls need them. These are there from the start, and stay: they
# answer also where the machine has no thread left.
SERVER_THREADS_KEPT: Final = 4
# Of these calls, how many may wait for storage, etcd or a node that does not answer
# yet, and how many of them try again at once: in all, and for the same answer.
WAITING_MAX: Final = 128
ATTEMPTS_MAX: Final = 32
ATTEMPTS_FOR_ONE_MAX: Final = 8
# A name that nobody knows, while a share was never read: for so long Get waits for the
# share. Docker, which gets no answer then, asks for 15 s more. No more than these wait.
GET_WAIT_S: Final = 20.0
GETS_WAITING_MAX: Final = 16
# List waits for the first look at each share, which a dead server makes three seconds.
LIST_WAIT_S: Final = 3.0
CONNECTIONS_MAX: Final = 4096
# The control socket: copies (import, clone, snapshot, restore) hold a thread for hours,
# so more than these are refused and the others answer short calls.
CONTROL_THREADS: Final = 24
LONG_CALLS_MAX: Final = 8
# A connection that sends nothing is closed after this long.
CONNECTION_IDLE_S: Final = 15
OPEN_FILES: Final = 65536

# Docker never sends more than a few kilobytes. Between the two bounds we read the
# request and answer it in one line; beyond the second the server itself refuses.
REQUEST_SIZE_MAX: Final = 256 * 1024
REQUEST_SIZE_READ_MAX: Final = 8 * 1024 * 1024
OPTIONS_MAX: Final = 64
OPTION_KEY_LENGTH_MAX: Final = 64
OPTION_VALUE_LENGTH_MAX: Final = 4096
MOUNT_ID_LENGTH_MAX: Final = 256
# A scheduler's path has the names of a pod, or an allocation, and of a volume in it.
TARGET_LENGTH_MAX: Final = 1024

# How long one pass of the reconciler may take to empty the trash.
GARBAGE_DEADLINE_S: Final = 600.0
# A volume with inherited references only may belong to a container that is starting,
# but not so long after the references' epoch began (configuration: disuse_grace_s).
DISUSE_GRACE_S: Final = 60.0

# For copying that a person waits for at a terminal. Docker's Create waits
# `LONG_DEADLINE_S` at most; the copying goes on, and a second Create waits for it.
COPY_DEADLINE_S: Final = 24 * 3600.0

# Labels of a swarm's nodes: how often they are compared, and how soon again where the
# engine does not answer. Swarm keeps a node's labels in one record of at most 1.5 MB.
SWARM_INTERVAL_S: Final = 10.0
SWARM_RETRY_S: Final = 20.0
SWARM_VOLUMES_MAX: Final = 1000
