"""
The only code that touches a share: a process of its own, which the daemon may kill.

It reads one JSON request a line and answers each with one line. It and what it imports
use the standard library alone, to be there in milliseconds.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TextIO

from backends.nfs.agent import identity, snapshots, volumes
from backends.nfs.agent.catalogue import Catalogue, Refused
from backends.nfs.agent.schema import Json
from backends.system import jail

OPERATIONS: dict[str, Callable[[Catalogue, Json], Any]] = {
    "identify": identity.identify,
    "create": volumes.create,
    "find": volumes.find,
    "rewrite": volumes.rewrite,
    "hold": volumes.hold,
    "release": volumes.release,
    "remove": volumes.remove,
    "discard": volumes.discard,
    "survey": volumes.survey,
    "check": volumes.check,
    "begin_copy": snapshots.begin_copy,
    "locate": snapshots.locate,
    "snapshots": snapshots.listed,
    "require_free": snapshots.require_free,
    "keep_snapshot": snapshots.keep,
    "remove_snapshot": snapshots.remove,
    "swap": snapshots.swap,
    "repair": snapshots.repair,
}


def _answering(act: Callable[[], Any], request: Json) -> Json:
    """Return what *act* did, as root or, where the server squashes root, the owner."""
    try:
        try:
            return {"result": act()}
        except PermissionError:
            uid, gid = request.get("uid", 0), request.get("gid", 0)
            if not uid:
                raise
            with jail.as_user(uid, gid):
                return {"result": act()}
    except Refused as refusal:
        return {"code": refusal.code, "text": str(refusal)}
    except PermissionError as error:
        return {
            "code": "SQUASH" if os.geteuid() == 0 else "DENIED",
            "text": f"the server refuses root: {error.strerror} ({error.filename})",
        }
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        # Whatever somebody has written into the catalogue, this process lives on.
        return {"code": "CATALOGUE", "text": f"it cannot be understood: {error!r}"}
    except OSError as error:
        codes = {
            errno.ESTALE: "STALE",
            errno.ENOSPC: "NOSPACE",
            errno.EDQUOT: "NOSPACE",
            errno.EROFS: "DENIED",
        }
        return {
            "code": codes.get(error.errno or 0, "IO"),
            "text": f"{error.strerror} ({error.filename})",
        }


def main() -> None:
    """
    Serve requests for the share mounted at argument 1 until end of input.

    A child does it, in a jail. A mounted volume, which is not in there, is looked at by
    this process.
    """
    share, node = sys.argv[1:]
    os.umask(0)
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        jail.die_with_caller()
        ours.close()
        os.closerange(0, 2)
        with theirs, theirs.makefile("r") as requests:
            _serve(share, node, requests, theirs)
        os._exit(0)
    theirs.close()
    with ours.makefile("r") as answers, suppress(BrokenPipeError):
        for line in sys.stdin:
            request = json.loads(line)
            if "target" in request:
                look = partial(_look, request["target"])
                answer = json.dumps(_answering(look, request)) + "\n"
            else:
                ours.sendall(line.encode())
                answer = answers.readline()
            if not answer:
                return
            sys.stdout.write(answer)
            sys.stdout.flush()
    os._exit(0)  # the daemon is gone; nobody reads what else there is to say


def _serve(share: str, node: str, requests: TextIO, answers: socket.socket) -> None:
    """Answer *requests* in a jail that has the share alone."""
    jail.enter(
        jail.Shown("share", share, writable=True),
        capabilities=jail.WRITING_AS_OWNER - {jail.SYS_ADMIN, jail.MKNOD},
        own_files=True,
    )
    catalogue = Catalogue("/share", node)
    with suppress(BrokenPipeError):
        for line in requests:
            request = json.loads(line)
            act = partial(_act, catalogue, request)
            answer = _answering(act, request)
            answers.sendall(json.dumps(answer).encode() + b"\n")


def _act(catalogue: Catalogue, request: Json) -> Any:
    """Return what was asked for, if the share is the one that is meant."""
    identity.require(catalogue, request.get("share_id", ""))
    return OPERATIONS[request["op"]](catalogue, request)


def _look(target: str) -> None:
    """Raise ESTALE (or what else is wrong) if a mounted volume does not answer."""
    os.statvfs(target)
    with os.scandir(target) as entries:
        next(entries, None)
