"""Which backends there are: one line each, without their code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from backends.base import Backend, Traits
from backends.errors import InvalidRequestError
from backends.nfs import traits as nfs
from backends.readonly import traits as readonly
from backends.rsync import traits as rsync

TRAITS: Final[Mapping[str, Traits]] = {
    "nfs": nfs.TRAITS,
    "readonly": readonly.TRAITS,
    "rsync": rsync.TRAITS,
}
DEFAULT_KIND: Final = "rsync"


def has_catalogue_on_storage(kind: str) -> bool:
    """Return whether nodes find volumes of *kind* by themselves, on their storage."""
    return kind in TRAITS and TRAITS[kind].catalogue_on_storage


def keeps_copies(kind: str) -> bool:
    """Return whether nodes may have copies of their own of volumes of *kind*."""
    return kind not in TRAITS or not TRAITS[kind].reachable_from_every_node


class Registry:
    """The backends that this daemon runs, by kind."""

    def __init__(self, backends: Iterable[Backend]) -> None:
        self._backends: dict[str, Backend] = {}
        for backend in backends:
            if backend.kind in self._backends:
                raise ValueError(f"two backends call themselves '{backend.kind}'")
            self._backends[backend.kind] = backend

    def all(self) -> Mapping[str, Backend]:
        """Return every backend by its kind."""
        return self._backends

    def get(self, kind: str) -> Backend:
        """
        Return the backend *kind*.

        Raises:
            InvalidRequestError: there is none; the valid ones are named.

        """
        backend = self._backends.get(kind)
        if backend is None:
            raise InvalidRequestError(
                f"unknown backend '{kind[:64]}'",
                hint=f"valid backends: {', '.join(sorted(self._backends))}",
            )
        return backend
