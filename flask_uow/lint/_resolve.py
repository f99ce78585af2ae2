"""What an expression stands for, found by following names through assignments, imports, classes and calls.

The source alone is read. What it does not tell is None: neither a session nor anything else.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from ._libraries import HANDING_ON, annotated_with, external, made_by, member_of_role, returned_by
from ._project import Project
from ._scopes import FUNCTION_NODES, SCOPE_NODES, Binding, How, Module, Scope, all_nodes
from ._syntax import decorator_names, dotted, is_getattr, literal
from ._values import ClassValue, External, FunctionValue, Instance, Method, ModuleValue, Role, Value

MAX_DEPTH = 40  # steps from a name to what it stands for
WITHOUT_UNIT = frozenset(("never", "not_supported"))
PROPERTIES = frozenset(("property", "cached_property", "hybrid_property", "classproperty"))
CONTAINERS = frozenset(
    "Annotated AsyncGenerator AsyncIterator Final ClassVar Generator Iterator Mapped Optional Union".split()
)

CONNECTIONS = frozenset(("conn", "connect", "connection", "get_bind"))
MANAGERS = frozenset(("contextmanager", "asynccontextmanager"))
UNITS = (Role.TRANSACTIONAL, Role.UNIT)

_ROLES_FIRST = (Role.SESSION, Role.OWN_SESSION, Role.TRANSACTION, Role.FACTORY, Role.DATABASE)


class Resolver:
    """Knows what the expressions of a project's modules stand for.

    :param project: the modules.
    :param sessions: the names that are sessions wherever the source does not tell: ``db.session``.
    :param units: the names of decorators and context managers that make units, besides ``transactional``.
    """

    def __init__(self, project: Project, sessions: Iterable[str], units: Iterable[str]) -> None:
        self._project = project
        self._sessions = frozenset(sessions)
        self._units = frozenset(units)
        self._known: dict[ast.AST, Value | None] = {}
        self._following: set[object] = set()
        self._opening: dict[ast.AST, bool] = {}
        self._depth = 0
        self._by_type: dict[type[ast.AST], Callable[[Any, Scope], Value | None]] = {
            ast.Name: self._name,
            ast.Attribute: self._attribute,
            ast.Call: self._call,
            ast.Await: lambda node, scope: self.value(node.value, scope),
            ast.NamedExpr: lambda node, scope: self.value(node.value, scope),
            ast.IfExp: lambda node, scope: self._any((node.body, node.orelse), scope),
            ast.BoolOp: lambda node, scope: self._any(node.values, scope),
            ast.Lambda: FunctionValue,
            ast.Constant: lambda node, scope: Role.FOREIGN,
        }

    # ---- expressions

    def value(self, node: ast.AST, scope: Scope) -> Value | None:
        """What an expression stands for, or None if the source does not tell."""
        if node in self._known:
            return self._known[node]
        resolve = self._by_type.get(type(node))
        if resolve is None or self._depth >= MAX_DEPTH:
            return None
        self._known[node] = None  # for what is bound to itself
        self._depth += 1
        try:
            found = resolve(node, scope)
        finally:
            self._depth -= 1
        self._known[node] = found
        return found

    def _any(self, nodes: Iterable[ast.AST], scope: Scope) -> Value | None:
        return one_of([self.value(node, scope) for node in nodes])

    def _name(self, node: ast.Name, scope: Scope) -> Value | None:
        bindings = scope.find(node.id)
        found = self._bound(bindings) if bindings else self._starred(node.id, scope.module)
        return self._named(node.id, found)

    def _attribute(self, node: ast.Attribute, scope: Scope) -> Value | None:
        found = self._member(self.value(node.value, scope), node.attr, scope.module)
        return self._named(dotted(node), found)

    def _named(self, text: str, found: Value | None) -> Value | None:
        """What was found, or what the configuration says of the name."""
        path = qualified(found)
        if any(_ends_with(name, path or text) or _ends_with(name, text) for name in self._units):
            return Role.TRANSACTIONAL
        is_unknown = found is None or isinstance(found, External)
        if is_unknown and any(_ends_with(name, path or text) or _ends_with(name, text) for name in self._sessions):
            return Role.SESSION
        return found

    def _call(self, node: ast.Call, scope: Scope) -> Value | None:
        if is_getattr(node):
            found = self._member(self.value(node.args[0], scope), str(literal(node.args[1])), scope.module)
            return found if found is not None or len(node.args) < 3 else self.value(node.args[2], scope)
        return self._called(self.value(node.func, scope), node, scope)

    # ---- names

    def _bound(self, bindings: Iterable[Binding]) -> Value | None:
        return one_of([self._binding(binding) for binding in bindings])

    def _binding(self, binding: Binding) -> Value | None:
        return self._once(binding, lambda: self._bound_by(binding))

    def _once(self, key: object, follow: Callable[[], Value | None]) -> Value | None:
        """What following a name leads to, unless that leads back to the name: modules may import each other."""
        if key in self._following:
            return None
        self._following.add(key)
        try:
            return follow()
        finally:
            self._following.discard(key)

    def _bound_by(self, binding: Binding) -> Value | None:
        node, scope = binding.node, binding.scope
        if binding.how is How.IMPORTED:
            return self._dotted(binding.path, scope.module)
        if binding.how in (How.SELF, How.CLASS):
            return _receiver(binding)
        if node is None or binding.how is How.ITERATED:
            return None
        if binding.how is How.DEFINED:
            return self._defined(node, scope)
        if binding.how is How.ANNOTATED:
            return self.annotation(node, scope)
        found = self.value(node, scope)
        return self._entered(found) if binding.how is How.ENTERED else found

    def _defined(self, node: ast.AST, scope: Scope) -> Value | None:
        inner = scope.module.scopes[node]
        if isinstance(node, ast.ClassDef):
            return ClassValue(node, inner)
        return FunctionValue(node, inner) if isinstance(node, FUNCTION_NODES) else None

    def _entered(self, value: Value | None) -> Value | None:
        """What ``with value as name`` binds."""
        if value is Role.UNIT:
            return Role.DATABASE  # a unit has a session
        if isinstance(value, Instance):
            enter = self.class_member(value.cls, "__enter__")
            return self._returned(enter) if isinstance(enter, FunctionValue) else None
        return value

    def _starred(self, name: str, module: Module) -> Value | None:
        """A name that is bound nowhere may come from a module of which all names are imported."""
        for star in module.stars:
            path = f"{star}.{name}"
            found = self._once((path, module.path), partial(self._dotted, path, module))
            if found is not None and (not isinstance(found, External) or made_by(found.path)):
                return found
        return None

    def _dotted(self, path: str, module: Module) -> Value | None:
        parts = [part for part in path.split(".") if part]
        if parts[0] == "flask_uow" and len(parts) <= 2:
            return external(path)  # its public names, in its own repository as well
        for count in range(len(parts), 0, -1):
            found = self._project.find(".".join(parts[:count]), module)
            if found is not None and not (found is module and count < len(parts)):
                return self._members(ModuleValue(found), parts[count:], module)
        return external(".".join(parts))

    def _members(self, value: Value | None, names: Iterable[str], module: Module) -> Value | None:
        for name in names:
            value = self._member(value, name, module)
        return value

    # ---- attributes

    def _member(self, owner: Value | None, name: str, module: Module) -> Value | None:
        if isinstance(owner, Role):
            return member_of_role(owner, name)
        if isinstance(owner, External):
            return external(f"{owner.path}.{name}")
        if isinstance(owner, ModuleValue):
            return self._module_member(owner.module, name)
        if isinstance(owner, (Instance, ClassValue)):
            cls = owner.cls if isinstance(owner, Instance) else owner
            return self.class_member(cls, name)
        return None

    def _module_member(self, module: Module, name: str) -> Value | None:
        bindings = module.scope.bindings.get(name)
        if bindings:
            return self._bound(bindings)
        inner = self._project.find(f"{module.name}.{name}", module) if module.path.name == "__init__.py" else None
        return ModuleValue(inner) if inner is not None else self._starred(name, module)

    def class_member(self, cls: ClassValue, name: str, seen: frozenset[ast.AST] = frozenset()) -> Value | None:
        if cls.node in seen:
            return None
        bindings = [*cls.scope.bindings.get(name, ()), *cls.scope.attributes.get(name, ())]
        found = one_of([self._read(binding) for binding in bindings])
        if bindings:
            return found
        for base in self._bases(cls):
            if isinstance(base, ClassValue):
                found = self.class_member(base, name, seen | {cls.node})
            elif isinstance(base, External) and (role := made_by(base.path)) is not None:
                found = member_of_role(role, name)
            if found is not None:
                return found
        return None

    def _read(self, binding: Binding) -> Value | None:
        """What an object's attribute is: what a property returns, not the property."""
        found = self._binding(binding)
        is_property = isinstance(found, FunctionValue) and decorator_names(found.node) & PROPERTIES
        return self._returned(found) if is_property and isinstance(found, FunctionValue) else found

    def _bases(self, cls: ClassValue) -> Iterator[Value | None]:
        outer = cls.scope.parent or cls.scope
        # Repository[Account] is a Repository.
        bases = (base.value if isinstance(base, ast.Subscript) else base for base in cls.node.bases)
        return (self.value(base, outer) for base in bases)

    def ancestors(self, cls: ClassValue) -> Iterator[str]:
        """The full names of the library's classes that a class comes from."""
        waiting, seen = [cls], set()
        while waiting:
            current = waiting.pop()
            if current.node in seen:
                continue
            seen.add(current.node)
            for base in self._bases(current):
                if isinstance(base, ClassValue):
                    waiting.append(base)
                elif isinstance(base, External):
                    yield base.path

    # ---- calls

    def _called(self, value: Value | None, node: ast.Call, scope: Scope) -> Value | None:
        if isinstance(value, (Role, External)):
            return self._library_called(value, node, scope)
        if isinstance(value, ClassValue):
            return self._made(value)
        if isinstance(value, FunctionValue):
            return self._returned(value)
        if isinstance(value, Method):
            return returned_by(value)
        return None

    def _library_called(self, value: Role | External, node: ast.Call, scope: Scope) -> Value | None:
        if isinstance(value, Role):
            found = self._role_called(value, node, scope)
        else:
            found = self._external_called(value.path, node, scope)
        is_made = found is Role.OWN_SESSION or found is Role.FACTORY
        return Role.FOREIGN if is_made and _is_on_connection(node) else found

    def _role_called(self, role: Role, node: ast.Call, scope: Scope) -> Value | None:
        if role is Role.FACTORY:
            return Role.OWN_SESSION
        if role in (Role.TRANSACTIONAL, Role.UNIT, Role.WITHOUT_UNIT) and node.args:
            return self.value(node.args[0], scope)  # what it decorates
        if role is Role.TRANSACTIONAL:
            return Role.WITHOUT_UNIT if _propagation(node) in WITHOUT_UNIT else Role.UNIT
        return role if role in (Role.SESSION, Role.FOREIGN) else None

    def _external_called(self, path: str, node: ast.Call, scope: Scope) -> Value | None:
        if path in HANDING_ON and node.args:
            return self.value(node.args[0], scope)
        if path == "typing.cast" and node.args:
            return self.annotation(node.args[0], scope)
        if path == "werkzeug.local.LocalProxy" and node.args:
            return self._called(self.value(node.args[0], scope), node, scope)
        return made_by(path)

    def _made(self, cls: ClassValue) -> Value:
        roles = [role for path in self.ancestors(cls) if (role := made_by(path)) is not None]
        return roles[0] if roles else Instance(cls)

    def _returned(self, function: FunctionValue) -> Value | None:
        """What a function returns, or yields to the ``with`` block that it is for."""
        node, scope = function.node, function.scope
        if isinstance(node, ast.Lambda):
            return self.value(node.body, scope)
        found = self.annotation(node.returns, scope.parent or scope) if node.returns is not None else None
        # An annotation does not tell whose session it is.
        if found is not None and found is not Role.SESSION:
            return found
        answers = [
            inner.value
            for inner in scope.nodes
            if isinstance(inner, (ast.Return, ast.Yield, ast.YieldFrom)) and inner.value is not None
        ]
        return self._any(answers, scope) or found

    # ---- annotations

    def annotation(self, node: ast.AST, scope: Scope) -> Value | None:
        """What something is that is annotated so."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return self._quoted(node.value, scope)
        if isinstance(node, ast.BinOp):
            return one_of([self.annotation(node.left, scope), self.annotation(node.right, scope)])
        if isinstance(node, ast.Constant) and node.value is None:
            return Role.FOREIGN
        if isinstance(node, ast.Subscript):
            return self._parametrised(node, scope)
        found = self.value(node, scope)
        if isinstance(found, ClassValue):
            made = self._made(found)
            return Role.SESSION if made is Role.OWN_SESSION else made
        if isinstance(found, External):
            return annotated_with(found.path)
        return found if found is Role.FOREIGN else None

    def _quoted(self, text: str, scope: Scope) -> Value | None:
        try:
            inner = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
        return self.annotation(inner, scope)

    def _parametrised(self, node: ast.Subscript, scope: Scope) -> Value | None:
        if dotted(node.value).rpartition(".")[2] not in CONTAINERS:
            return self.annotation(node.value, scope)
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return one_of([self.annotation(part, scope) for part in parts])

    # ---- units

    def opens_unit(self, value: Value | None) -> bool:
        """Whether a function of the project opens units for those whom it decorates, or in whose ``with`` it stands."""
        if not isinstance(value, FunctionValue) or isinstance(value.node, ast.Lambda):
            return False
        if value.node not in self._opening:
            self._opening[value.node] = self._opens_unit(value)
        return self._opening[value.node]

    def _opens_unit(self, value: FunctionValue) -> bool:
        is_manager = decorator_names(value.node) & MANAGERS
        is_decorator = any(isinstance(inner, SCOPE_NODES) for inner in value.scope.nodes)
        if not is_manager and not is_decorator and not _returns_call(value.scope):
            return False
        names = ((node, scope) for node, scope in all_nodes(value.scope) if isinstance(node, (ast.Name, ast.Attribute)))
        return any(self.value(node, scope) in UNITS for node, scope in names)


def one_of(values: Iterable[Value | None]) -> Value | None:
    """What something is that may be any of these: a session if one is."""
    found = list(values)
    for role in _ROLES_FIRST:
        if role in found:
            return role
    known = [value for value in found if value is not None and value is not Role.FOREIGN]
    if known:
        return known[0]
    return Role.FOREIGN if found and None not in found else None


def qualified(value: Value | None) -> str:
    """The full name of something, or nothing if it has none."""
    if isinstance(value, External):
        return value.path
    if isinstance(value, FunctionValue) and not isinstance(value.node, ast.Lambda):
        return f"{value.scope.module.name}.{value.node.name}"
    return f"{value.scope.module.name}.{value.node.name}" if isinstance(value, ClassValue) else ""


def _ends_with(name: str, text: str) -> bool:
    return text == name or text.endswith(f".{name}")


def _returns_call(scope: Scope) -> bool:
    """Whether a function returns what another one makes: ``return transactional(retries=3)(function)``."""
    return any(isinstance(inner, ast.Return) and isinstance(inner.value, ast.Call) for inner in scope.nodes)


def _is_on_connection(node: ast.Call) -> bool:
    """Whether a session is made on a connection, whose transaction is its owner's: ``Session(bind=connection)``."""
    binds = [*node.args[:1], *(keyword.value for keyword in node.keywords if keyword.arg == "bind")]
    names = (dotted(bind.func if isinstance(bind, ast.Call) else bind).rpartition(".")[2] for bind in binds)
    return any(name in CONNECTIONS for name in names)


def _receiver(binding: Binding) -> Value | None:
    scope = binding.scope.parent
    if scope is None or not isinstance(scope.node, ast.ClassDef):
        return None
    cls = ClassValue(scope.node, scope)
    return Instance(cls) if binding.how is How.SELF else cls


def _propagation(node: ast.Call) -> str:
    """The propagation that a call of ``transactional`` asks for, in lower case; nothing if it does not say."""
    for keyword in node.keywords:
        if keyword.arg == "propagation":
            said = literal(keyword.value) or dotted(keyword.value).rpartition(".")[2]
            return str(said).lower()
    return ""
