"""Many changes of the store as few transactions, each within what etcd takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from plugin.store.base import Compare, Operation, Put

# etcd takes 128 conditions and 128 operations in a transaction, and 1.5 MB in a
# request, by its defaults; values grow by a third on their way.
OPERATIONS_MAX: Final = 100
SIZE_BYTES_MAX: Final = 512 * 1024


@dataclass(frozen=True, slots=True)
class Step:
    """Changes that belong together, and the conditions on which they are made."""

    conditions: tuple[Compare, ...]
    operations: tuple[Operation, ...]

    @property
    def size_bytes(self) -> int:
        """How much there is to send."""
        return sum(map(_size, self.operations))


def batches(steps: Iterable[Step], *always: Compare) -> Iterator[Step]:
    """
    Yield *steps* in their order, as many in one as fit; each also compares *always*.

    A step is never divided: it must fit by itself.
    """
    conditions: list[Compare] = [*always]
    operations: list[Operation] = []
    size_bytes = 0
    for step in steps:
        full = (
            len(conditions) + len(step.conditions) > OPERATIONS_MAX
            or len(operations) + len(step.operations) > OPERATIONS_MAX
            or size_bytes + step.size_bytes > SIZE_BYTES_MAX
        )
        if full and operations:
            yield Step(tuple(conditions), tuple(operations))
            conditions, operations, size_bytes = [*always], [], 0
        conditions += step.conditions
        operations += step.operations
        size_bytes += step.size_bytes
    if operations:
        yield Step(tuple(conditions), tuple(operations))


def _size(operation: Operation) -> int:
    value = operation.value if isinstance(operation, Put) else b""
    return len(operation.key) + len(value)
