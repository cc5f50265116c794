"""
The only code that touches a share: a process of its own, which the daemon may kill.

It reads one JSON request a line and answers each with one line. It and what it imports
use the standard library alone, to be there in milliseconds.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from backends.nfs.agent import snapshots, volumes
from backends.nfs.agent.catalogue import Catalogue, Json, Refused
from backends.system.jail import as_user

OPERATIONS: dict[str, Callable[[Catalogue, Json], Any]] = {
    "create": volumes.create,
    "find": volumes.find,
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


def _answer(catalogue: Catalogue, request: Json) -> Json:
    """Do one request, as root and, where the server squashes root, as the owner."""
    act = OPERATIONS[request["op"]]
    try:
        try:
            return {"result": act(catalogue, request)}
        except PermissionError:
            uid, gid = request.get("uid", 0), request.get("gid", 0)
            if not uid:
                raise
            with as_user(uid, gid):
                return {"result": act(catalogue, request)}
    except Refused as refusal:
        return {"code": refusal.code, "text": str(refusal)}
    except PermissionError as error:
        return {
            "code": "SQUASH" if os.geteuid() == 0 else "DENIED",
            "text": f"the server refuses root: {error.strerror} ({error.filename})",
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
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
    """Serve requests for the share mounted at the first argument until end of input."""
    # From here on by relative paths: an owner that we become may not pass the way here.
    os.chdir(sys.argv[1])
    catalogue = Catalogue(".", sys.argv[2])
    os.umask(0)
    try:
        for line in sys.stdin:
            answer = _answer(catalogue, json.loads(line))
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
    except BrokenPipeError:
        os._exit(0)  # the daemon is gone; nobody reads what else there is to say
