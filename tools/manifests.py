"""
Writes deploy/kubernetes/*.yaml, which is what the chart makes of its own values.

The chart is the one truth: `make manifests` renders it for those who have no Helm. Of
Helm's language it may use no more than is understood here: a value, a condition around
whole lines, and a map of strings. Anything else is refused.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).resolve().parent.parent
CHART: Final = ROOT / "deploy/chart"
TARGET: Final = ROOT / "deploy/kubernetes"
RELEASE: Final = {"Namespace": "kube-system"}
# What the plain manifests are made of, and how their values differ from the chart's.
FORMS: Final[dict[str, tuple[tuple[str, ...], dict[str, Any]]]] = {
    "hosts.yaml": (("driver", "controller"), {}),
    "daemonset.yaml": (("driver", "controller", "node"), {"daemonSet": True}),
    "snapshots.yaml": (("snapshots",), {"snapshots": True}),
}
HEAD: Final = "# Made of deploy/chart by `make manifests`: change that one.\n"
_IF: Final = re.compile(r"\{\{- if \.(\S+) \}\}")
_END: Final = re.compile(r"\{\{- end \}\}")
_MAP: Final = re.compile(r"\{\{- toYaml \.(\S+) \| nindent (\d+) \}\}")
_VALUE: Final = re.compile(r"\{\{ \.(\S+) \}\}")


def rendered(templates: Sequence[str], changes: dict[str, Any]) -> str:
    """Return *templates* with the chart's own values, but for *changes*."""
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    given = {"Values": {**values, **changes}, "Release": RELEASE}
    texts = [
        _template((CHART / f"templates/{name}.yaml").read_text(encoding="utf-8"), given)
        for name in templates
    ]
    return HEAD + "---\n".join(text for text in texts if text)


def _template(text: str, given: dict[str, Any]) -> str:
    lines: list[str] = []
    # Whether each of the conditions around the line holds.
    conditions: list[bool] = []
    for line in text.splitlines():
        stripped = line.strip()
        if found := _IF.fullmatch(stripped):
            conditions.append(bool(_value(found[1], given)))
        elif _END.fullmatch(stripped):
            conditions.pop()
        elif all(conditions):
            lines += _line(line, given)
    return "".join(f"{line}\n" for line in lines)


def _line(line: str, given: dict[str, Any]) -> list[str]:
    if found := _MAP.fullmatch(line.strip()):
        pairs = _value(found[1], given)
        margin = " " * int(found[2])
        return [f"{margin}{key}: {json.dumps(text)}" for key, text in pairs.items()]
    line = _VALUE.sub(lambda found: str(_value(found[1], given)), line)
    if "{{" in line:
        raise SystemExit(f"manifests: this is not understood here: {line.strip()}")
    return [line]


def _value(path: str, given: dict[str, Any]) -> Any:
    found: Any = given
    for name in path.split("."):
        if name not in found:
            raise SystemExit(f"manifests: values.yaml has no {path}")
        found = found[name]
    return found


def main() -> None:
    """Write them all."""
    for name, form in FORMS.items():
        (TARGET / name).write_text(rendered(*form), encoding="utf-8")
        print(TARGET / name, file=sys.stderr)


if __name__ == "__main__":
    main()
