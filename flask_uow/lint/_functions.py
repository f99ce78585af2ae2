"""What a function is: a unit, a view, one that Flask calls at the end of a context; and decorators in a wrong order."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from ._resolve import UNITS, Resolver
from ._scopes import Module, Scope, all_nodes, own_nodes
from ._syntax import decorator_names, dotted, literal
from ._values import ClassValue, FunctionValue, Role

DefinedNode = ast.FunctionDef | ast.AsyncFunctionDef

VIEW_CLASSES = frozenset(
    (
        "flask.views.MethodView",
        "flask.views.View",
        "flask_restful.Resource",
        "flask_restplus.Resource",
        "flask_restx.Resource",
        "flask_smorest.MethodView",
    )
)
VIEW_METHODS = frozenset(("delete", "dispatch_request", "get", "head", "options", "patch", "post", "put"))
TEARDOWNS = frozenset(("teardown_app_request", "teardown_appcontext", "teardown_request"))

_ROUTES = frozenset(("delete", "expose", "get", "patch", "post", "put", "route"))
# These keep the function that they get, and give it back. What expose() does stays on the function.
_REGISTRARS = TEARDOWNS | frozenset(
    "after_app_request after_request app_errorhandler before_app_request before_request command delete errorhandler "
    "get patch post put route shared_task task".split()
)
_GENERATOR_USERS = frozenset(("asynccontextmanager", "contextmanager", "fixture", "hookimpl"))


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a function.

    :param is_unit: whether each call of it is a unit.
    :param is_view: whether a request ends there.
    :param is_teardown: whether Flask calls it when a context ends.
    :param too_high: the decorator that has registered the function before ``@transactional`` made it a unit.
    :param is_refused: whether ``@transactional`` refuses it, being a generator function.
    """

    is_unit: bool = False
    is_view: bool = False
    is_teardown: bool = False
    too_high: ast.expr | None = None
    is_refused: bool = False


class Functions:
    """Knows the functions of one module.

    :param resolver: knows what their decorators are.
    """

    def __init__(self, module: Module, resolver: Resolver) -> None:
        self._resolver = resolver
        self._wrapped: set[ast.AST] = set()
        self._registered: set[ast.AST] = set()
        for node, scope in all_nodes(module.scope):
            if isinstance(node, ast.Call):
                self._note_call(node, scope)

    def facts(self, node: DefinedNode, scope: Scope) -> Facts:
        """What a function is.

        :param scope: where it is defined.
        """
        units = [index for index, each in enumerate(node.decorator_list) if self.is_unit(each, scope)]
        registrars = [index for index, each in enumerate(node.decorator_list) if _is_registrar(each)]
        too_high = [index for index in registrars if units and index > units[-1]]
        # What stands between may have made something else of the generator function.
        is_direct = bool(units) and units[-1] + 1 == len(node.decorator_list)
        return Facts(
            is_unit=bool(units and not too_high) or node in self._wrapped or self._is_in_unit_class(node, scope),
            is_view=self._is_view(node, scope),
            is_teardown=any(map(_is_teardown, node.decorator_list)),
            too_high=node.decorator_list[too_high[0]] if too_high else None,
            is_refused=(is_direct or bool(too_high)) and is_generator(node),
        )

    def is_unit(self, node: ast.expr, scope: Scope) -> bool:
        """Whether a decorator makes units, or a ``with`` block of it is one."""
        if self._resolver.value(node, scope) in UNITS:
            return True
        function = node.func if isinstance(node, ast.Call) else node
        return self._resolver.opens_unit(self._resolver.value(function, scope))

    def _note_call(self, node: ast.Call, scope: Scope) -> None:
        views = [keyword.value for keyword in node.keywords if keyword.arg == "view_func"]
        if isinstance(node.func, ast.Attribute) and node.func.attr == "add_url_rule":
            views += node.args[2:3]
        self._registered.update(self._functions_of(views, scope))
        if self._resolver.value(node.func, scope) in UNITS:
            self._wrapped.update(self._functions_of(node.args[:1], scope))

    def _functions_of(self, nodes: list[ast.expr], scope: Scope) -> Iterator[ast.AST]:
        for node in nodes:
            value = self._resolver.value(node, scope)
            if isinstance(value, FunctionValue):
                yield value.node

    def _is_view(self, node: DefinedNode, scope: Scope) -> bool:
        if node in self._registered or any(map(_is_route, node.decorator_list)):
            return True
        return node.name in VIEW_METHODS and bool(set(self._library_classes(scope)) & VIEW_CLASSES)

    def _library_classes(self, scope: Scope) -> Iterator[str]:
        if isinstance(scope.node, ast.ClassDef):
            yield from self._resolver.ancestors(ClassValue(scope.node, scope))

    def _is_in_unit_class(self, node: DefinedNode, scope: Scope) -> bool:
        """Whether it is a method of a view class whose ``decorators`` make it a unit."""
        if not isinstance(scope.node, ast.ClassDef) or node.name not in VIEW_METHODS:
            return False
        lists = [binding.node for binding in scope.bindings.get("decorators", ())]
        each = [item for value in lists if isinstance(value, (ast.List, ast.Tuple)) for item in value.elts]
        return any(self.is_unit(item, scope) for item in each)


def is_generator(node: DefinedNode) -> bool:
    """Whether a call only begins to run it."""
    return any(isinstance(inner, (ast.Yield, ast.YieldFrom)) for inner in own_nodes(node))


def may_hold_unit(node: DefinedNode) -> bool:
    """Whether a generator function is run by a ``with`` statement or a test, which end it as well."""
    return bool(decorator_names(node) & _GENERATOR_USERS)


def is_without_unit(resolver: Resolver, node: ast.expr, scope: Scope) -> bool:
    """Whether a ``with`` block of it runs outside any unit."""
    return resolver.value(node, scope) is Role.WITHOUT_UNIT


def _is_route(node: ast.expr) -> bool:
    """Whether a decorator is ``@app.post("/path")`` or like it."""
    if not isinstance(node, ast.Call) or dotted(node.func).rpartition(".")[2] not in _ROUTES:
        return False
    if isinstance(node.func, ast.Attribute) and node.func.attr == "route":
        return True
    rules = [*node.args[:1], *(keyword.value for keyword in node.keywords if keyword.arg == "rule")]
    rule = literal(rules[0]) if rules else None
    return isinstance(rule, str) and rule[:1] in ("/", "")


def _is_teardown(node: ast.expr) -> bool:
    """Whether a decorator is ``@app.teardown_appcontext``, or Celery's ``@task_postrun.connect``."""
    names = dotted(node.func if isinstance(node, ast.Call) else node).split(".")
    return bool(TEARDOWNS.intersection(names)) or "task_postrun" in names


def _is_registrar(node: ast.expr) -> bool:
    function = node.func if isinstance(node, ast.Call) else node
    name = dotted(function).rpartition(".")[2]
    if name in ("delete", "get", "patch", "post", "put"):
        return _is_route(node)
    return name in _REGISTRARS
