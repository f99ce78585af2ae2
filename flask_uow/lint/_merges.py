"""UOW105: ``merge()`` of an object that the same function has loaded with the same session."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ._resolve import Resolver
from ._scopes import Binding, How, Scope
from ._syntax import dotted, literal
from ._values import SESSIONS, Method, Role

_ONE = frozenset("first first_or_404 get get_one get_or_404 one one_or_404 one_or_none scalar".split())
_ONE_OF_RESULT = frozenset(("first", "one", "one_or_none", "scalar_one", "scalar_one_or_none"))
_LETTING_GO = frozenset(
    "close expunge expunge_all invalidate make_transient make_transient_to_detached remove reset".split()
)


def merges_of_loaded(scope: Scope, resolver: Resolver) -> Iterator[tuple[ast.Call, int]]:
    """The merges of one function that merge what it has loaded, each with the line that loads it."""
    calls = [node for node in scope.nodes if isinstance(node, ast.Call)]
    for call in calls:
        loaded = _loaded_before(call, scope, resolver)
        if loaded and not _lets_go(calls, loaded, call.lineno):
            yield call, loaded


def _loaded_before(call: ast.Call, scope: Scope, resolver: Resolver) -> int:
    """The line in which the merged object was loaded; 0 for any other call."""
    method = resolver.value(call.func, scope)
    if not isinstance(method, Method) or method.name != "merge" or not call.args:
        return 0
    merged, session = call.args[0], _owner(call.func)
    if session is None:
        return 0
    if not isinstance(merged, ast.Name):
        return merged.lineno if _is_loaded(merged, session, scope, resolver) else 0
    bindings = [each for each in scope.bindings.get(merged.id, ()) if each.line <= call.lineno]
    meant = [each for each in bindings if literal(each.node) is not None or not isinstance(each.node, ast.Constant)]
    is_loaded = bool(meant) and all(_is_bound_to_loaded(each, session, resolver) for each in meant)
    return meant[-1].line if is_loaded else 0


def _owner(function: ast.expr) -> ast.expr | None:
    return function.value if isinstance(function, ast.Attribute) else None


def _is_bound_to_loaded(binding: Binding, session: ast.expr, resolver: Resolver) -> bool:
    if not isinstance(binding.node, ast.expr):
        return False
    if binding.how is How.ITERATED:
        return _is_many(binding.node, session, binding.scope, resolver)
    return binding.how is How.ASSIGNED and _is_loaded(binding.node, session, binding.scope, resolver)


def _is_loaded(node: ast.expr, session: ast.expr, scope: Scope, resolver: Resolver) -> bool:
    """Whether an expression is one object that the session has."""
    if isinstance(node, ast.Await):
        node = node.value
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or):
        is_refused = all(isinstance(each, ast.Call) and _name(each) == "abort" for each in node.values[1:])
        return is_refused and _is_loaded(node.values[0], session, scope, resolver)
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    is_direct = _is_session(node.func.value, session, scope, resolver)
    if is_direct:
        return node.func.attr in ("get", "get_one", "scalar", "merge")
    ends = _ONE if _is_query(node.func.value, session, scope, resolver) else _ONE_OF_RESULT
    return node.func.attr in ends and _is_many(node.func.value, session, scope, resolver)


def _is_many(node: ast.expr, session: ast.expr, scope: Scope, resolver: Resolver) -> bool:
    """Whether an expression is a query or a result, whose objects the session has."""
    if _is_query(node, session, scope, resolver):
        return True
    methods = _methods_from(node, session, scope, resolver)
    return methods[:1] == ["scalars"] or methods[:2] == ["execute", "scalars"] or methods == ["execute"]


def _is_query(node: ast.expr, session: ast.expr, scope: Scope, resolver: Resolver) -> bool:
    """Whether it begins as ``session.query(Model)``, of the whole model, or as ``Model.query``."""
    chain = list(_chain(node))
    for inner, outer in zip(chain[1:], chain, strict=False):
        if isinstance(inner, ast.Attribute) and inner.attr == "query" and isinstance(outer, ast.Call):
            is_entity = len(outer.args) == 1 and dotted(outer.args[0]).rpartition(".")[2][:1].isupper()
            return is_entity and _is_session(inner.value, session, scope, resolver)
    first = next((each for each in chain[::-1] if isinstance(each, ast.Attribute)), None)
    is_of_model = first is not None and first.attr == "query" and dotted(first.value)[:1].isupper()
    return is_of_model and resolver.value(session, scope) is Role.SESSION


def _methods_from(node: ast.expr, session: ast.expr, scope: Scope, resolver: Resolver) -> list[str]:
    """The methods that are called one after the other, beginning with the session's."""
    methods = []
    for inner in _chain(node):
        if isinstance(inner, ast.Attribute):
            methods.append(inner.attr)
            if _is_session(inner.value, session, scope, resolver):
                return methods[::-1]
    return []


def _chain(node: ast.expr) -> Iterator[ast.expr]:
    """A chain of calls and attributes, from its end to its beginning."""
    while isinstance(node, (ast.Call, ast.Attribute)):
        yield node
        node = node.func if isinstance(node, ast.Call) else node.value


def _is_session(node: ast.expr, session: ast.expr, scope: Scope, resolver: Resolver) -> bool:
    return resolver.value(node, scope) in SESSIONS and ast.unparse(node) == ast.unparse(session)


def _name(call: ast.Call) -> str:
    return dotted(call.func).rpartition(".")[2]


def _lets_go(calls: list[ast.Call], first: int, last: int) -> bool:
    """Whether something between two lines may have taken the object out of the session."""
    names = (_name(call) for call in calls if first <= call.lineno <= last)
    return any(name in _LETTING_GO for name in names)
