"""Where the extension belongs: beside the line that gives Flask-SQLAlchemy its app."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from ..lint._libraries import SCOPED_CLASSES
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
_FREE = SCOPED_CLASSES - {"flask_sqlalchemy_session.flask_scoped_session"}
_MADE = "flask_uow.UnitOfWork"
NAME = "uow"


@dataclass(frozen=True, slots=True)
class Setup:
    """How an app gets the extension.

    One extension serves all apps of a session, as one object of Flask-SQLAlchemy does.

    :param statement: it gives the owner of the session its app.
    :param scope: where it stands.
    :param code: what goes below it.
    :param home: the module where the extension is made, if that is not done there.
    :param made: the statement of that module which makes the owner.
    :param making: what goes below that one.
    :param imported: the statement that imports the owner by name, and the extension then too.
    """

    statement: ast.stmt
    scope: Scope
    code: str
    home: Module | None = None
    made: ast.stmt | None = None
    making: str = ""
    imported: ast.stmt | None = None


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

    def sessions_in(self, module: Module) -> list[str]:
        """What makes the sessions of the whole app in a module, those of libraries among them."""
        calls = ((node, scope) for node, scope in all_nodes(module.scope) if isinstance(node, ast.Call))
        made = (self._made_by(node, scope) for node, scope in calls)
        return [path for path in made if path in SCOPED_CLASSES or path in _OWNERS]

    def missing_in(self, module: Module) -> Iterator[Setup]:
        """How the apps of a module ought to get it."""
        for node, scope in all_nodes(module.scope):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                yield from self._of_assignment(node, node.value, scope)
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                yield from self._of_call(node, node.value, scope)

    def _of_assignment(self, node: ast.Assign, call: ast.Call, scope: Scope) -> Iterator[Setup]:
        """``db = SQLAlchemy(app)``."""
        session = _OWNERS.get(self._made_by(call, scope))
        app = _argument(call, "app")
        name = _target(node)
        if session and app and name and not scope.find(NAME):
            yield Setup(node, scope, f"{NAME} = UnitOfWork({app}, session={session.format(db=name)})")

    def _of_call(self, node: ast.Expr, call: ast.Call, scope: Scope) -> Iterator[Setup]:
        """``db.init_app(app)``."""
        app = _argument(call, "app")
        if not isinstance(call.func, ast.Attribute) or call.func.attr != "init_app" or not app:
            return
        name = dotted(call.func.value)
        owner = self._owner(name, scope, set())
        home = owner.scope.module if owner is not None else None
        made = next((each for each in home.tree.body if _is_made(each, owner)), None) if home and owner else None
        if home is None or made is None or owner is None or home.scope.find(NAME):
            return
        session = _OWNERS[self._made_by(_call(made), home.scope)].format(db=_target(made))
        where = self._reached(name, scope, home)
        if where is not None:
            imported, prefix = where
            making = f"{NAME} = UnitOfWork(session={session})"
            yield Setup(node, scope, f"{prefix}{NAME}.init_app({app})", home, made, making, imported)

    def _reached(self, name: str, scope: Scope, home: Module) -> tuple[ast.stmt | None, str] | None:
        """How the extension is reached from where its owner is: by which import, and below which names."""
        module = scope.module
        prefix, dot, _ = name.rpartition(".")
        bindings = scope.find(name.partition(".")[0])
        imports = [each for each in bindings if each.how is How.IMPORTED]
        if not imports:
            return (None, "") if home is module and not dot else None
        if len(bindings) > 1:
            return None
        (binding,) = imports
        if dot:  # extensions.db
            found = self._project.find(".".join([binding.path, *prefix.split(".")[1:]]), module)
            return (None, f"{prefix}.") if found is home else None
        # The import itself has to name the module where the owner is made, and the name has to be free.
        source, _, original = binding.path.rpartition(".")
        statement = next((node for node in binding.scope.nodes if _imports(node, original, binding.line)), None)
        is_home = self._project.find(source, module) is home
        return (statement, "") if is_home and isinstance(statement, ast.stmt) and not scope.find(NAME) else None

    def _made_by(self, call: ast.Call, scope: Scope) -> str:
        """The full name of the library's class that a call makes an object of."""
        value = self._resolver.value(call.func, scope)
        if isinstance(value, ClassValue):
            return next((path for path in self._resolver.ancestors(value) if path in _OWNERS), "")
        return value.path if isinstance(value, External) else ""

    def _owner(self, name: str, scope: Scope, seen: set[Binding]) -> Binding | None:
        """What makes the owner of a session that a name stands for, wherever in the project that is."""
        first, *others = name.split(".")
        for binding in scope.find(first):
            if binding in seen:
                continue
            seen.add(binding)
            is_call = binding.how is How.ASSIGNED and isinstance(binding.node, ast.Call) and not others
            if is_call and isinstance(binding.node, ast.Call):
                found = binding if self._made_by(binding.node, binding.scope) in _OWNERS else None
            else:
                path = ".".join([binding.path, *others])
                found = self._imported(path, binding, seen) if binding.how is How.IMPORTED else None
            if found is not None:
                return found
        return None

    def _imported(self, path: str, binding: Binding, seen: set[Binding]) -> Binding | None:
        parts = path.split(".")
        for count in range(len(parts) - 1, 0, -1):
            module = self._project.find(".".join(parts[:count]), binding.scope.module)
            if module is not None:
                return self._owner(".".join(parts[count:]), module.scope, seen)
        return None


def works_without_app(made: str) -> bool:
    """Whether a session does that this class makes."""
    return made in _FREE


def _argument(call: ast.Call, name: str) -> str:
    """The app that a call is handed, if it is handed by a name."""
    found = [*call.args[:1], *(keyword.value for keyword in call.keywords if keyword.arg == name)]
    return dotted(found[0]) if found else ""


def _target(node: ast.stmt) -> str:
    """The one name that a statement binds."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return targets[0].id if len(targets) == 1 and isinstance(targets[0], ast.Name) else ""


def _is_made(node: ast.stmt, owner: Binding) -> bool:
    return isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is owner.node and bool(_target(node))


def _call(node: ast.stmt) -> ast.Call:
    value = getattr(node, "value", None)
    assert isinstance(value, ast.Call)
    return value


def _imports(node: ast.AST, name: str, line: int) -> bool:
    is_there = isinstance(node, ast.ImportFrom) and node.lineno == line
    return is_there and any(alias.name == name for alias in getattr(node, "names", ()))
