"""Where the extension belongs: beside the line that gives Flask-SQLAlchemy its app."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from ..lint._project import Project
from ..lint._resolve import Resolver
from ..lint._scopes import Binding, How, Module, Scope, all_nodes
from ..lint._syntax import dotted
from ..lint._values import ClassValue, External

_OWNERS = {
    "flask_sqlalchemy.SQLAlchemy": "{db}.session",
    "flask_sqlalchemy.extension.SQLAlchemy": "{db}.session",
    "flask_sqlalchemy_lite.SQLAlchemy": "lambda: {db}.session",
}
_MADE = "flask_uow.UnitOfWork"


@dataclass(frozen=True, slots=True)
class Setup:
    """A statement below which the extension is made.

    :param statement: it gives the owner of the session its app.
    :param scope: where it stands.
    :param code: what makes the extension.
    """

    statement: ast.stmt
    scope: Scope
    code: str


class Setups:
    """Finds where the extension is made, and where it ought to be.

    :param resolver: knows what names stand for.
    """

    def __init__(self, project: Project, resolver: Resolver) -> None:
        self._project = project
        self._resolver = resolver

    def is_made_in(self, module: Module) -> bool:
        """Whether a module makes a ``UnitOfWork``."""
        calls = ((node, scope) for node, scope in all_nodes(module.scope) if isinstance(node, ast.Call))
        return any(self._made_by(node, scope) == _MADE for node, scope in calls)

    def missing_in(self, module: Module) -> Iterator[Setup]:
        """The statements of a module below which it ought to be made, one for each app."""
        for node, scope in all_nodes(module.scope):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                yield from self._of_assignment(node, node.value, scope)
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                yield from self._of_call(node, node.value, scope)

    def _of_assignment(self, node: ast.Assign, call: ast.Call, scope: Scope) -> Iterator[Setup]:
        """``db = SQLAlchemy(app)``."""
        session = _OWNERS.get(self._made_by(call, scope))
        app = _argument(call, "app")
        target = node.targets[0]
        if session and app and len(node.targets) == 1 and isinstance(target, ast.Name):
            is_free = not scope.find("uow")
            yield Setup(node, scope, f"{'uow = ' if is_free else ''}{_code(app, session, target.id)}")

    def _of_call(self, node: ast.Expr, call: ast.Call, scope: Scope) -> Iterator[Setup]:
        """``db.init_app(app)``."""
        app = _argument(call, "app")
        if not isinstance(call.func, ast.Attribute) or call.func.attr != "init_app" or not app:
            return
        name = dotted(call.func.value)
        session = _OWNERS.get(self._owner(name, scope, set()))
        if session:
            yield Setup(node, scope, _code(app, session, name))

    def _made_by(self, call: ast.Call, scope: Scope) -> str:
        """The full name of the library's class that a call makes an object of."""
        value = self._resolver.value(call.func, scope)
        if isinstance(value, ClassValue):
            return next((path for path in self._resolver.ancestors(value) if path in _OWNERS), "")
        return value.path if isinstance(value, External) else ""

    def _owner(self, name: str, scope: Scope, seen: set[Binding]) -> str:
        """The class of what a name stands for, wherever in the project it is made."""
        first, *others = name.split(".")
        for binding in scope.find(first):
            if binding in seen:
                continue
            seen.add(binding)
            if binding.how is How.ASSIGNED and isinstance(binding.node, ast.Call) and not others:
                found = self._made_by(binding.node, binding.scope)
            else:
                path = ".".join([binding.path, *others])
                found = self._imported(path, binding, seen) if binding.how is How.IMPORTED else ""
            if found:
                return found
        return ""

    def _imported(self, path: str, binding: Binding, seen: set[Binding]) -> str:
        parts = path.split(".")
        for count in range(len(parts) - 1, 0, -1):
            module = self._project.find(".".join(parts[:count]), binding.scope.module)
            if module is not None:
                return self._owner(".".join(parts[count:]), module.scope, seen)
        return ""


def _argument(call: ast.Call, name: str) -> str:
    """The app that a call is handed, if it is handed by a name."""
    found = [*call.args[:1], *(keyword.value for keyword in call.keywords if keyword.arg == name)]
    return dotted(found[0]) if found else ""


def _code(app: str, session: str, db: str) -> str:
    return f"UnitOfWork({app}, session={session.format(db=db)})"
