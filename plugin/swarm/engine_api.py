"""The Docker Engine's own API at its Unix socket."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import requests
import requests_unixsocket

from plugin.errors import EngineError

_CONNECT_TIMEOUT_S: Final = 5.0


class EngineApi:
    """
    Calls the engine that listens at *socket*.

    Never from within a call of the engine's to us: it may hold a lock meanwhile.
    """

    def __init__(self, socket: str | Path, *, timeout_s: float) -> None:
        self._socket = Path(socket)
        self._base = f"http+unix://{quote(str(socket), safe='')}"
        self._timeout_s = (_CONNECT_TIMEOUT_S, timeout_s)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """
        Return the engine's decoded answer, {} if it is empty.

        Raises:
            EngineError: it refused, with its reason, or did not answer in time.

        """
        # The library would leave what it could not connect open for a while.
        if not self._socket.is_socket():
            raise EngineError(
                f"the Docker Engine is not at {self._socket}", hint="is docker running?"
            )
        try:
            # A connection of its own: the engine may be another one at the next call.
            with requests_unixsocket.Session() as session:
                session.trust_env = False
                session.headers["Connection"] = "close"
                response = session.request(
                    method, self._base + path, json=body, timeout=self._timeout_s
                )
            answer = response.json() if response.content else {}
        except (requests.RequestException, ValueError) as error:
            raise EngineError(
                "the Docker Engine does not answer", hint="is docker running?"
            ) from error
        if response.status_code >= 400:
            raise EngineError(str(answer.get("message", response.status_code)))
        return answer
