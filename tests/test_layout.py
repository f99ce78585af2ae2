"""The package's layers: a module imports what stands above it, and does nothing when it is imported."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import flask_uow

PACKAGE = Path(flask_uow.__file__).parent

# A module, or a folder of modules, imports only from lines above its own. The package's root imports from all.
LAYERS = (
    "_lazy",
    "exceptions",
    "signals",
    "_callsite",
    "_short_names",
    "_application_name",
    "_fork",
    "_fronts",
    "_gevent",
    "_statements",
    "_harmless",
    "_hiding",
    "_board",
    "_board_files",
    "_rules",
    "_scopes",
    "_options",
    "_settings",
    "_drivers",
    "_pool",
    "_ride",
    "_retry",
    "_unit_log",
    "_engines",
    "_body",
    "_outcome",
    "_session_transactions",
    "_state",
    "_threads",
    "_views",
    "_checkouts",
    "_reader",
    "_commit",
    "_limits",
    "_two_phase",
    "_notices",
    "_hooks",
    "_units",
    "_guard",
    "_sessions",
    "_transactional",
    "_requests",
    "_timeline",
    "_recording",
    "_server_timing",
    "stats",
    "_full_pool",
    "_tables",
    "_watch",
    "_cli",
    "lint",
    "codemod",
    "_extension",
    "testing",
    "contrib",
)

HARMLESS = (
    ast.AnnAssign,
    ast.Assign,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.FunctionDef,
    ast.Import,
    ast.ImportFrom,
)

MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))

every_module = pytest.mark.parametrize("module", MODULES, ids=str)


@every_module
def test_module_imports_only_what_stands_above_it(module: Path) -> None:
    """The layers hold, so that the units never depend on who watches them."""
    layer = _layer(module)
    allowed = LAYERS if layer is None else (*LAYERS[: LAYERS.index(layer)], layer)

    imported = set(_imported_layers(module))

    assert imported <= set(allowed), f"{module} imports {sorted(imported - set(allowed))} from below itself."


@every_module
def test_module_does_nothing_when_it_is_imported(module: Path) -> None:
    """At import a module defines and names; it calls nothing for the call's effect."""
    odd = [node for node in _without_typing(_parse(module)) if not _is_harmless(node)]

    assert not odd, f"{module}:{odd[0].lineno}: {ast.unparse(odd[0])}"


@every_module
def test_module_says_what_it_is_for(module: Path) -> None:
    """A module begins with the idea of the file."""
    assert ast.get_docstring(_parse(module))


def _layer(module: Path) -> str | None:
    """Return the line of the list that a module belongs to; the package's root belongs to none."""
    name = module.parts[0].removesuffix(".py")
    return None if name == "__init__" else name


def _imported_layers(module: Path) -> Iterator[str]:
    # Imports within functions count as well; those for the type checker alone do not.
    for statement in _without_typing(_parse(module)):
        for node in ast.walk(statement):
            if isinstance(node, ast.ImportFrom):
                yield from _layers_of_from(module, node)
            elif isinstance(node, ast.Import):
                yield from (_first_part(alias.name) for alias in node.names if alias.name.startswith("flask_uow."))


def _layers_of_from(module: Path, node: ast.ImportFrom) -> Iterator[str]:
    package = ["flask_uow", *module.parts[:-1]]
    base = package[: len(package) - node.level + 1] if node.level else []
    source = ".".join([*base, *filter(None, [node.module])])
    if source == "flask_uow":
        yield from (alias.name for alias in node.names)
    elif source.startswith("flask_uow."):
        yield _first_part(source)


def _first_part(name: str) -> str:
    return name.split(".")[1]


def _parse(module: Path) -> ast.Module:
    return ast.parse((PACKAGE / module).read_text())


def _without_typing(tree: ast.Module) -> list[ast.stmt]:
    return [node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))]


def _is_harmless(node: ast.stmt) -> bool:
    if isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'":
        return True
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return is_text or isinstance(node, HARMLESS)
