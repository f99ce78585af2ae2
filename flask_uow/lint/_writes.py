"""Which calls write: statements that are executed, and queries that change rows."""

from __future__ import annotations

import ast

from .._statements import Kind, kind_of
from ._resolve import Resolver
from ._scopes import How, Scope
from ._syntax import dotted
from ._values import SESSIONS

_CHANGES = frozenset(("delete", "insert", "update"))


def kind_of_argument(node: ast.expr, scope: Scope, *, may_look_up: bool = True) -> Kind:
    """What a statement does that is handed to ``execute()``: a text, ``text("...")``, ``update(...)``, or its name."""
    if isinstance(node, ast.Name) and may_look_up:
        bound = [each.node for each in scope.find(node.id) if each.how is How.ASSIGNED]
        kinds = [kind_of_argument(each, scope, may_look_up=False) for each in bound if isinstance(each, ast.expr)]
        return kinds[-1] if kinds else Kind.READ
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return kind_of(node.value, None)
    while isinstance(node, ast.Call):
        name = dotted(node.func).rpartition(".")[2]
        if name == "text" and node.args:
            return kind_of_argument(node.args[0], scope, may_look_up=may_look_up)
        is_chained = isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Call)
        if name in _CHANGES and not is_chained:
            return Kind.WRITE
        node = node.func.value if isinstance(node.func, ast.Attribute) else node.func
    return Kind.READ


def changes_by_query(node: ast.Call, scope: Scope, resolver: Resolver) -> bool:
    """Whether a call is ``session.query(...).delete()`` or ``Model.query.filter(...).update(...)``."""
    if not isinstance(node.func, ast.Attribute) or node.func.attr not in ("delete", "update"):
        return False
    inner: ast.expr = node.func.value
    while isinstance(inner, (ast.Call, ast.Attribute)):
        if isinstance(inner, ast.Attribute) and inner.attr == "query":
            is_of_session = resolver.value(inner.value, scope) in SESSIONS
            return is_of_session or dotted(inner.value).rpartition(".")[2][:1].isupper()
        inner = inner.func if isinstance(inner, ast.Call) else inner.value
    return False
