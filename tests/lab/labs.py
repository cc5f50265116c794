"""Labs that modules use one after the other, and what is set up on them once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from subprocess import SubprocessError
from typing import Any, TypeVar

from .lab import Lab, Topology

Part = TypeVar("Part")


class Labs:
    """
    At most one lab, with every node on.

    It stands as long as the same shared topology is asked for; `close` ends it sooner.
    A module leaves its nodes as it would want to find them: its daemons stopped, and
    nothing mounted.
    """

    def __init__(self) -> None:
        self._lab: Lab | None = None
        self._topology: Topology | None = None
        # What was set up on the lab, by name, and how it is ended.
        self._parts: dict[str, tuple[Any, Callable[[], object]]] = {}

    @property
    def is_shared(self) -> bool:
        """Whether the lab may be other modules', too."""
        return self._topology is not None and bool(self._topology.shared_as)

    def lab(self, topology: Topology) -> Lab:
        """Return the lab of *topology*; one of another topology ends."""
        if self._lab is not None and topology.shared_as and topology == self._topology:
            # One that cannot be mended is not the next module's fault: it gets another.
            with suppress(AssertionError, OSError, RuntimeError, SubprocessError):
                self._lab.restore()
                return self._lab
        self.close()
        lab = Lab(topology)
        try:
            lab.boot()
        except BaseException:
            lab.close()
            raise
        self._lab, self._topology = lab, topology
        return lab

    def part(
        self,
        name: str,
        make: Callable[[], Part],
        end: Callable[[Part], object] = lambda _: None,
    ) -> Part:
        """Return what *make* has set up on the lab under *name*, once for each lab."""
        if name not in self._parts:
            made = make()
            self._parts[name] = (made, lambda: end(made))
        found: Part = self._parts[name][0]
        return found

    def close(self) -> None:
        """End the parts, the last one first, and the lab."""
        lab, self._lab = self._lab, None
        parts, self._parts = self._parts, {}
        if lab is None:
            return
        with ExitStack() as stack:
            stack.callback(lab.close)
            for _, end in parts.values():
                stack.callback(end)
