"""
Classes for the messages of gRPC, made at the start from `fields.txt`.

On the wire there are the names of packages, services and methods, and the numbers of
fields; so no compiler and no generated code is needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from google.protobuf import (  # noqa: F401 - messages refer to the last two
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    timestamp_pb2,
    wrappers_pb2,
)

_TABLE: Final = Path(__file__).with_name("fields.txt")
_FIELD: Final = re.compile(r"(?P<name>\w+)=(?P<number>\d+)(?P<many>\*?):(?P<type>\w+)")
_METHOD: Final = re.compile(r"(?P<name>\w+)(?:\((?P<ask>\w+),(?P<answer>\w+)\))?")
_PLAIN: Final[Mapping[str, Any]] = {
    "s": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
    "b": descriptor_pb2.FieldDescriptorProto.TYPE_BOOL,
    "i": descriptor_pb2.FieldDescriptorProto.TYPE_INT32,
    "l": descriptor_pb2.FieldDescriptorProto.TYPE_INT64,
}
_WELL_KNOWN: Final = {
    "BoolValue": "google/protobuf/wrappers.proto",
    "Int64Value": "google/protobuf/wrappers.proto",
    "Timestamp": "google/protobuf/timestamp.proto",
}


@dataclass(frozen=True, slots=True)
class Method:
    """One method of a service: the classes of what is asked and of what is answered."""

    ask: Any
    answer: Any


@dataclass(frozen=True, slots=True)
class Package:
    """The messages of a package by their names, and its services' methods."""

    name: str
    messages: Mapping[str, Any]
    services: Mapping[str, Mapping[str, Method]]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.messages[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass(slots=True)
class _Lines:
    """The lines of one package."""

    name: str
    messages: dict[str, str] = field(default_factory=dict)
    services: dict[str, str] = field(default_factory=dict)


def packages() -> dict[str, Package]:
    """Return the packages of the table, by their names."""
    return {each.name: _made(each) for each in _read(_TABLE.read_text("utf-8"))}


def _read(text: str) -> Iterator[_Lines]:
    package: _Lines | None = None
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        if line.startswith("package "):
            if package is not None:
                yield package
            package = _Lines(line.removeprefix("package "))
            continue
        if package is None:
            raise ValueError(f"{_TABLE} begins without a package")
        name, _, rest = line.partition(":")
        if name.startswith("service "):
            package.services[name.removeprefix("service ")] = rest
        else:
            package.messages[name] = rest
    if package is not None:
        yield package


def _made(lines: _Lines) -> Package:
    file = descriptor_pb2.FileDescriptorProto(
        name=f"remora/{lines.name}.proto",
        package=lines.name,
        syntax="proto3",
        dependency=sorted({*_WELL_KNOWN.values()}),
    )
    for name, rest in lines.messages.items():
        _describe(file.message_type.add(name=name), lines.name, rest)
    pool = descriptor_pool.Default()
    pool.Add(file)
    made = {
        name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"{lines.name}.{name}")
        )
        for name in lines.messages
    }
    services = {
        name: {
            each["name"]: Method(
                made[each["ask"] or f"{each['name']}Request"],
                made[each["answer"] or f"{each['name']}Response"],
            )
            for each in _METHOD.finditer(rest)
        }
        for name, rest in lines.services.items()
    }
    return Package(lines.name, made, services)


def _describe(message: Any, package: str, rest: str) -> None:
    kinds = descriptor_pb2.FieldDescriptorProto
    for found in _FIELD.finditer(rest):
        kind = found["type"]
        made = message.field.add(name=found["name"], number=int(found["number"]))
        made.label = kinds.LABEL_REPEATED if found["many"] else kinds.LABEL_OPTIONAL
        if kind in _PLAIN:
            made.type = _PLAIN[kind]
            continue
        made.type = kinds.TYPE_MESSAGE
        if kind == "m":
            # A map is a list of pairs, whose type must be called like this.
            entry = "".join(part.title() for part in found["name"].split("_")) + "Entry"
            pair = message.nested_type.add(name=entry)
            pair.options.map_entry = True
            for number, name in enumerate(("key", "value"), start=1):
                part = pair.field.add(name=name, number=number, type=kinds.TYPE_STRING)
                part.label = kinds.LABEL_OPTIONAL
            made.label = kinds.LABEL_REPEATED
            made.type_name = f".{package}.{message.name}.{entry}"
        elif kind in _WELL_KNOWN:
            made.type_name = f".google.protobuf.{kind}"
        else:
            made.type_name = f".{package}.{kind}"
