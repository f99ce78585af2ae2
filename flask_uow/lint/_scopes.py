"""What a module's names are bound to, scope by scope; nothing is resolved here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
ScopeNode = ast.Module | ast.ClassDef | FunctionNode
SCOPE_NODES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
FUNCTION_NODES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


class How(Enum):
    """How a name was bound."""

    ASSIGNED = "name = node"
    ENTERED = "with node as name"
    ITERATED = "for name in node"
    ANNOTATED = "name: node"
    DEFINED = "def name, class name"
    IMPORTED = "import name"
    SELF = "the first parameter of a method"
    CLASS = "the first parameter of a class method"
    OPAQUE = "in a way that says nothing"


@dataclass(frozen=True, slots=True)
class Binding:
    """One way in which a name got its value.

    :param node: what it was bound to, by ``how``.
    :param path: the dotted name that was imported.
    :param line: where.
    """

    how: How
    scope: Scope
    node: ast.AST | None = None
    path: str = ""
    line: int = 0


@dataclass(eq=False, slots=True)
class Scope:
    """A module, class or function, and the names that are bound in it.

    :param attributes: of a class: what its methods bind to ``self.name``.
    """

    node: ScopeNode
    module: Module
    parent: Scope | None = None
    bindings: dict[str, list[Binding]] = field(default_factory=dict)
    attributes: dict[str, list[Binding]] = field(default_factory=dict)
    _nodes: list[ast.AST] | None = None

    @property
    def nodes(self) -> list[ast.AST]:
        """What it consists of, without what is inside the functions and classes in it."""
        if self._nodes is None:
            self._nodes = list(own_nodes(self.node))
        return self._nodes

    @property
    def is_class(self) -> bool:
        """Whether functions inside do not see its names."""
        return isinstance(self.node, ast.ClassDef)

    def has_type_parameter(self, name: str) -> bool:
        """Whether it is a class with a parameter of a name, which functions inside do see."""
        return any(parameter.name == name for parameter in getattr(self.node, "type_params", ()))

    def bind(self, name: str, binding: Binding) -> None:
        """Remember one more way in which a name is bound."""
        self.bindings.setdefault(name, []).append(binding)

    def find(self, name: str) -> list[Binding]:
        """The bindings of a name as code in this scope sees it."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.bindings and (scope is self or not scope.is_class or scope.has_type_parameter(name)):
                return scope.bindings[name]
            scope = scope.parent
        return []


@dataclass(eq=False, slots=True)
class Module:
    """A file of Python as it was read.

    :param name: its dotted name, as far as the folders tell.
    :param root: the folder from which absolute imports are looked for.
    :param lines: its text.
    :param stars: the modules of which it imports all names.
    """

    path: Path
    name: str
    root: Path
    tree: ast.Module
    lines: list[str] = field(default_factory=list)
    scopes: dict[ast.AST, Scope] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)

    @property
    def package(self) -> str:
        """The dotted name that relative imports start from."""
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]

    @property
    def scope(self) -> Scope:
        """The module's own names."""
        return self.scopes[self.tree]

    @property
    def is_migration(self) -> bool:
        """Whether Alembic runs it, in a transaction that is Alembic's: a revision, or what lies beside ``env.py``."""
        is_revision = {"revision", "down_revision"} <= self.scope.bindings.keys()
        folders = self.path.parents[:3]
        return is_revision or any((each / "env.py").is_file() and (each / "versions").is_dir() for each in folders)

    def column(self, line: int, offset: int) -> int:
        """The column of a node, from 1 and in characters: the parser counts bytes."""
        text = self.lines[line - 1] if line <= len(self.lines) else ""
        return len(text.encode()[:offset].decode(errors="ignore")) + 1 if not text.isascii() else offset + 1


def own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """What a function, class or module consists of, without what is inside the functions and classes in it."""
    waiting = list(ast.iter_child_nodes(node))[::-1]
    while waiting:
        inner = waiting.pop()
        yield inner
        if not isinstance(inner, SCOPE_NODES):
            waiting.extend(list(ast.iter_child_nodes(inner))[::-1])


def all_nodes(scope: Scope) -> Iterator[tuple[ast.AST, Scope]]:
    """What a function, class or module consists of, all the way down, each with the scope that it is in."""
    for node in scope.nodes:
        yield node, scope
        if isinstance(node, SCOPE_NODES):
            yield from all_nodes(scope.module.scopes[node])
