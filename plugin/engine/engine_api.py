"""The Docker Engine's own API at its Unix socket."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from plugin.errors import EngineError


class _Connection(http.client.HTTPConnection):
    """One connection to the engine at *path*."""

    def __init__(self, path: Path, *, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket instead of a host."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class EngineApi:
    """
    Calls the engine that listens at *path*.

    Do not use it within a call of the engine to us: the engine may hold a lock then.
    """

    def __init__(self, path: str | Path, *, timeout_s: float) -> None:
        self._path = Path(path)
        self._timeout_s = timeout_s

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """
        Return the engine's decoded answer, {} if it is empty.

        Raises:
            EngineError: it refused, with its reason, or did not answer in time.

        """
        # The connection is not kept: the next call may meet another engine.
        connection = _Connection(self._path, timeout_s=self._timeout_s)
        content = None if body is None else json.dumps(body)
        headers = {"Connection": "close", "Content-Type": "application/json"}
        try:
            connection.request(method, path, content, headers)
            response = connection.getresponse()
            text = response.read()
            answer = json.loads(text) if text else {}
        except FileNotFoundError:
            raise EngineError(
                f"the Docker Engine is not at {self._path}", hint="is docker running?"
            ) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise EngineError(
                "the Docker Engine does not answer", hint="is docker running?"
            ) from error
        finally:
            connection.close()
        if response.status >= 400:
            raise EngineError(str(answer.get("message", response.status)))
        return answer
