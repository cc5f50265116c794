"""The repository itself: sizes, directions, dead modules, undocumented settings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.errors import RemoraError
from plugin import limits
from plugin.cli import main
from tests.support import order
from tests.support.config_keys import environment_names

REPOSITORY = Path(__file__).resolve().parents[2]
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 50
PACKAGES = ("plugin", "backends")
NOT_OURS = re.compile(
    r"\.(git|venv|hypothesis)|.*_cache|__pycache__|.*\.egg-info|build|dist"
)
# Started by name, not imported.
ENTRY_POINTS = {"plugin.cli.main"}
# Programs of their own, which the daemon may kill; they import nothing of ours.
STAND_ALONE = {"backends.nfs.agent", "backends.nfs.unmount"}
# Programs whose whole work is to become another one, in a place of its own, and what
# makes that place; and one that goes on alone when it has started.
BECOME_ANOTHER = {
    "plugin.peers.enclosure",
    "plugin.peers.receive",
    "plugin.fencing.guard",
    "backends.system.jail",
    "backends.system.jailed",
    "backends.nfs.agent.main",
    "backends.nfs.agent.trash",
}
# Paths of the machine that this was written on, and registries that were used there.
# Put together here, so that this file does not name them.
FOREIGN = re.compile(
    r"(?<![\w.})$\"'-])/("
    + "|".join(["wo" + "rk", "ho" + "me/[a-z]+", "ro" + "ot"])
    + r")/"
    r"|artifact"
    + r"ory|nexus\."
    + r"[a-z]|\bdeb"
    + r"ian\.org|pythonhost"
    + r"ed|npm"
    + r"js\.|pypi\."
    + r"org|\bcla"
    + r"ude\b|anthro"
    + r"pic",
    re.IGNORECASE,
)


def files(*suffixes: str) -> list[Path]:
    """Return the repository's own files with one of *suffixes*, sorted."""

    def walk(directory: Path) -> Iterator[Path]:
        for entry in directory.iterdir():
            if NOT_OURS.fullmatch(entry.name) or entry.is_symlink():
                continue
            if entry.is_dir():
                yield from walk(entry)
            elif not suffixes or entry.suffix in suffixes:
                yield entry

    return sorted(walk(REPOSITORY))


def modules() -> dict[str, Path]:
    """Return every module of the two packages by its name."""
    found = {}
    for path in files(".py"):
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        if parts[0] in PACKAGES:
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), filename=str(path))


def shown(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def test_the_repository_is_found() -> None:
    known = {"plugin.daemon.daemon", "backends.rsync.backend", "plugin.cli"}
    assert known <= modules().keys()
    assert len(files(".py")) > 60
    assert Path(__file__).resolve() in files(".py")


def test_no_file_is_too_long() -> None:
    lengths = {shown(path): len(path.read_text().splitlines()) for path in files(".py")}
    too_long = {name: n for name, n in lengths.items() if n > FILE_LINES_MAX}
    assert too_long == {}


def function_lengths(tree: ast.Module) -> Iterator[tuple[str, int, int]]:
    """
    Yield name, line and own length of each function.

    Functions inside it are measured for themselves: one that holds an application's
    routes is a list of functions, not a long one.
    """
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds):
            inside = [each for each in ast.walk(node) if isinstance(each, kinds)]
            nested = {
                line
                for each in inside
                if each is not node
                for line in range(each.lineno, each.end_lineno + 1)
            }
            own = set(range(node.lineno, node.end_lineno + 1)) - nested
            yield node.name, node.lineno, len(own)


def test_no_function_is_too_long() -> None:
    too_long = [
        f"{shown(path)}:{line} {name}: {length}"
        for path in files(".py")
        for name, line, length in function_lengths(parsed(path))
        if length > FUNCTION_LINES_MAX
    ]
    assert too_long == []


def imported(name: str, path: Path) -> Iterator[str]:
    """
    Yield the names of modules that module *name* imports or starts as programs.

    The latter are known by the text "agent.py" in a module beside agent.py.
    """
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(part for part in (above, node.module) if part)
            yield base
            yield from (f"{base}.{each.name}" for each in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield f"{package}.{node.value.removesuffix('.py')}"


def test_no_module_is_dead() -> None:
    found = modules()
    alive = set(ENTRY_POINTS)
    for name, path in found.items():
        alive |= {each for each in imported(name, path) if each != name}
    packages = {name for name, path in found.items() if path.name == "__init__.py"}
    assert sorted(found.keys() - alive - packages) == []


def test_storage_does_not_import_the_daemon() -> None:
    wrong = [
        f"{name} imports {each}"
        for name, path in modules().items()
        if name.startswith("backends")
        for each in imported(name, path)
        if each.split(".")[0] in ("plugin", "flask", "click", "waitress")
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("modules_of", "only"),
    [
        (("subprocess", "pty", "multiprocessing"), {"backends.system.run"}),
        (("time", "datetime"), {"backends.system.clock", "plugin.logs"}),
        # Structures and buffers for its calls are made where their fields are known.
        (
            ("ctypes",),
            {
                "backends.system.libc",
                "backends.system.fanotify",
                "plugin.fencing.timer",
            },
        ),
    ],
)
def test_the_systems_edge_is_in_one_place(
    modules_of: tuple[str, ...], only: set[str]
) -> None:
    users = {
        name
        for name, path in modules().items()
        for each in imported(name, path)
        if each.split(".")[0] in modules_of
    }
    assert users <= only | STAND_ALONE


def test_types_are_decoded_in_one_place() -> None:
    """There a lock is held while msgspec learns a type; elsewhere threads crash."""
    users = {
        name
        for name, path in modules().items()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("msgspec.")
        if ast.unparse(node.func).endswith((".convert", ".Decoder"))
        or any(each.arg == "type" for each in node.keywords)
    }
    assert users == {"backends.system.decoding"}


def test_nothing_else_starts_a_program() -> None:
    banned = re.compile(r"\bos\.(system|popen|fork|spawn\w*|exec\w*|posix_spawn\w*)\(")
    wrong = [
        shown(path)
        for name, path in modules().items()
        if name not in BECOME_ANOTHER
        if banned.search(path.read_text()) or "shell=True" in path.read_text()
    ]
    assert wrong == []


def test_every_setting_is_documented() -> None:
    text = (REPOSITORY / "packaging/remora.toml").read_text()
    readme = REPOSITORY / "README.md"
    text += readme.read_text() if readme.exists() else ""
    names = [name.removeprefix("REMORA_") for name in environment_names()]
    keys = [name.removeprefix("SWARM_").lower() for name in names]
    assert len(keys) >= 9
    assert [key for key in keys if not re.search(rf"\b{key}\b", text)] == []


def test_nothing_names_the_machine_it_was_written_on() -> None:
    texts = (".py", ".md", ".toml", ".json", ".service", ".socket", ".sh", ".txt", "")
    wrong = [
        f"{shown(path)}:{number}: {line.strip()[:80]}"
        for path in files(*texts)
        for number, line in enumerate(path.read_bytes().decode("utf-8").splitlines(), 1)
        if FOREIGN.search(line)
    ]
    assert wrong == []


def test_every_long_group_of_tests_is_there() -> None:
    tests = "".join(path.read_text() for path in files(".py") if "tests" in path.parts)
    modules_of_lab = {f"lab-{each.stem}" for each in REPOSITORY.glob("tests/lab/*.py")}
    shared = {f"lab-{name}" for name in re.findall(r'shared_as="([\w-]+)"', tests)}
    groups = set(re.findall(r'xdist_group\("([\w-]+)"\)', tests))
    modules = {shown(path) for path in files(".py")}
    assert set(order.LONG) <= groups | shared | modules_of_lab | modules


def test_every_file_that_is_named_is_there() -> None:
    known = [f"/{shown(path)}" for path in files()]
    named = re.compile(r"`([\w./-]+\.py)`")
    missing = {
        f"{shown(path)}: {name}"
        for path in files(".py", ".md")
        for name in named.findall(path.read_text("utf-8"))
        if not any(each.endswith(f"/{name}") for each in known)
    }
    assert missing == set()


def test_every_limit_is_used() -> None:
    source = "".join(
        path.read_text() for name, path in modules().items() if name != "plugin.limits"
    )
    tree = parsed(modules()["plugin.limits"])
    names = [node.target.id for node in tree.body if isinstance(node, ast.AnnAssign)]
    assert len(names) > 10
    unused = [name for name in names if not re.search(rf"\b{name}\b", source)]
    # What the engine allows is only written down for the next test.
    assert [name for name in unused if not name.startswith("ENGINE_")] == []


def test_our_deadlines_lie_below_the_engines() -> None:
    """Else it would hold a mount that we undo, or the reverse."""
    margin_s = 5
    assert limits.LONG_DEADLINE_S + margin_s <= limits.ENGINE_LONG_TIMEOUT_S
    assert limits.SHORT_DEADLINE_S + margin_s <= limits.ENGINE_SHORT_TIMEOUT_S
    assert limits.OPERATIONS_MAX < limits.CALLS_MAX < limits.SERVER_THREADS
    assert limits.REQUEST_SIZE_MAX < limits.REQUEST_SIZE_READ_MAX


def test_every_error_has_a_code_and_an_exit_code_of_its_own() -> None:
    def tree(root: type[RemoraError]) -> Iterator[type[RemoraError]]:
        for each in root.__subclasses__():
            if each.__module__ in ("backends.errors", "plugin.errors"):
                yield each
                yield from tree(each)

    found = {each for each in tree(RemoraError) if "code" in vars(each)}
    assert len(found) >= 10
    assert len({each.code for each in found}) == len(found)
    assert len({each.exit_code for each in found}) == len(found)
    # 2 is click's for a wrong command line.
    assert not {each.exit_code for each in found} & {0, 1, 2}
    documented = main.__doc__
    codes = {int(number) for number in re.findall(r"\b\d+\b", documented)}
    assert {each.exit_code for each in found} <= codes
