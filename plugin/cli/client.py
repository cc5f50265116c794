"""The CLI's side of the control socket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import requests
import requests_unixsocket

from plugin.errors import DaemonUnreachableError, RemoteError
from plugin.limits import LONG_DEADLINE_S
from plugin.peers.lines import error_from_json

_CONNECT_TIMEOUT_S: Final = 5.0
_CHUNK_SIZE: Final = 64 * 1024
# Above the daemon's own deadline: its error says more than our time-out would.
_READ_TIMEOUT_S: Final = LONG_DEADLINE_S + 10


class Client:
    """Calls the daemon behind *control_socket*."""

    def __init__(self, control_socket: Path) -> None:
        self._socket = control_socket
        self._base = f"http+unix://{quote(str(control_socket), safe='')}"
        self._session = requests_unixsocket.Session()
        # A proxy in the shell's environment must not be used for a Unix socket.
        self._session.trust_env = False

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        read_timeout_s: float | None = _READ_TIMEOUT_S,
    ) -> Any:
        """
        Return the daemon's JSON answer.

        Raises:
            DaemonUnreachableError: nobody answers at the socket.
            RemoteError: the daemon's error, with its code and exit code.

        """
        try:
            response = self._session.request(
                method,
                self._base + path,
                json=body,
                timeout=(_CONNECT_TIMEOUT_S, read_timeout_s),
            )
        except requests.RequestException as error:
            raise self._unreachable(error) from error
        answer = _decoded(response)
        if response.status_code != 200:
            raise _remote_error(answer)
        return answer

    def stream(self, path: str) -> Iterator[bytes]:
        """
        Yield the daemon's answer to GET *path* piece by piece, however long it takes.

        Raises:
            DaemonUnreachableError, RemoteError: as `call`; or it ended early.

        """
        try:
            with self._session.get(
                self._base + path, stream=True, timeout=(_CONNECT_TIMEOUT_S, None)
            ) as response:
                if response.status_code != 200:
                    raise _remote_error(_decoded(response))
                yield from response.iter_content(_CHUNK_SIZE)
        except requests.exceptions.ChunkedEncodingError as error:
            raise DaemonUnreachableError(
                "the daemon's answer broke off", hint="its log says why"
            ) from error
        except requests.RequestException as error:
            raise self._unreachable(error) from error

    def lines(self, path: str) -> Iterator[bytes]:
        """Yield the lines of the answer to GET *path*; raises as `stream`."""
        pending = b""
        for chunk in self.stream(path):
            *lines, pending = (pending + chunk).split(b"\n")
            yield from lines

    def _unreachable(self, error: Exception) -> DaemonUnreachableError:
        if isinstance(error, requests.Timeout):
            return DaemonUnreachableError(
                f"the daemon at {self._socket} did not answer in time",
                hint="remora doctor",
            )
        if not self._socket.exists():
            cause = f"there is no daemon at {self._socket}"
        else:
            cause = f"the daemon at {self._socket} does not answer"
        return DaemonUnreachableError(
            cause, hint="systemctl start remora, as root; or see: remora doctor"
        )


def _decoded(response: requests.Response) -> Any:
    try:
        return response.json()
    except ValueError as error:
        raise RemoteError(
            "internal",
            f"the daemon's answer ({response.status_code}) cannot be read",
            hint="do the versions of remora and its daemon differ?",
            exit_code=1,
        ) from error


def _remote_error(answer: Any) -> RemoteError:
    return error_from_json(answer.get("error") if isinstance(answer, dict) else answer)
