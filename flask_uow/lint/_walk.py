"""Walks through a module and finds the calls that break a rule, in the light of the function around them."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

from .._statements import Kind
from ._checks import CHECKS
from ._findings import Finding, Unresolved
from ._functions import TEARDOWNS, DefinedNode, Facts, Functions, is_generator, is_without_unit, may_hold_unit
from ._libraries import HANDING_ON
from ._merges import merges_of_loaded
from ._resolve import Resolver
from ._scopes import How, Module, Scope, own_nodes
from ._syntax import dotted, is_any_getattr, is_getattr, literal, shown
from ._values import (
    CLOSES,
    COMMITS,
    ROLLBACKS,
    SESSIONS,
    STATEMENTS,
    USUAL_NAMES,
    WRITES,
    External,
    Method,
)
from ._writes import changes_by_query, kind_of_argument

# What tells a session from something else that can be closed.
_TELLING = frozenset("add add_all commit execute flush merge query refresh rollback scalar scalars".split())
_BLOCKS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.With, ast.AsyncWith)


@dataclass(eq=False, slots=True)
class _Around:
    """The function that is walked through.

    :param writes: the writes that stand in no unit.
    :param has_commit: whether it commits by hand, which is told there: one cause, one finding.
    """

    scope: Scope
    facts: Facts = field(default_factory=Facts)
    writes: list[tuple[str, int]] = field(default_factory=list)
    has_commit: bool = False


def walk(
    module: Module, path: str, resolver: Resolver, *, is_data_access: bool
) -> tuple[list[Finding], list[Unresolved]]:
    """What is wrong in a module, and what could not be told.

    :param path: how findings name it.
    :param is_data_access: whether the configuration says that it may flush and no more.
    """
    walker = _Walker(module, path, resolver, is_data_access=is_data_access)
    walker.visit(module.tree)
    return walker.findings, walker.unresolved


class _Walker(ast.NodeVisitor):
    def __init__(self, module: Module, path: str, resolver: Resolver, *, is_data_access: bool) -> None:
        self.findings: list[Finding] = []
        self.unresolved: list[Unresolved] = []
        self._module = module
        self._path = path
        self._resolver = resolver
        self._functions = Functions(module, resolver)
        self._is_data_access = is_data_access
        self._around = _Around(module.scope)
        self._is_in_unit = False

    # ---- functions and blocks

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._visit_function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._visit_function(node)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        # Whoever calls it may do so when the unit has ended.
        self._visit_inside(node, _Around(self._module.scopes[node]), is_unit=False)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._visit_inside(node, _Around(self._module.scopes[node]), is_unit=self._is_in_unit)

    def _visit_function(self, node: DefinedNode) -> None:
        facts = self._functions.facts(node, self._around.scope)
        around = _Around(self._module.scopes[node], facts)
        self._visit_inside(node, around, is_unit=facts.is_unit)
        self._judge_decorators(node, facts)
        self._judge_view(node, around)
        for call, line in merges_of_loaded(around.scope, self._resolver):
            self._find("UOW105", call, call=shown(call), line=line)

    def _visit_inside(self, node: ast.AST, around: _Around, *, is_unit: bool) -> None:
        outer = self._around, self._is_in_unit
        self._around, self._is_in_unit = around, is_unit
        self.generic_visit(node)
        self._around, self._is_in_unit = outer

    def visit_With(self, node: ast.With) -> None:
        self._visit_with(node)

    def visit_AsyncWith(self, node: ast.AsyncWith) -> None:
        self._visit_with(node)

    def _visit_with(self, node: ast.With | ast.AsyncWith) -> None:
        was_in_unit = self._is_in_unit
        for item in node.items:
            self.visit(item)
            if self._functions.is_unit(item.context_expr, self._around.scope):
                self._is_in_unit = True
                self._judge_yields(node)
            elif is_without_unit(self._resolver, item.context_expr, self._around.scope):
                self._is_in_unit = False
        for statement in node.body:
            self.visit(statement)
        self._is_in_unit = was_in_unit

    # ---- decorators, views, generators

    def _judge_decorators(self, node: DefinedNode, facts: Facts) -> None:
        if facts.is_refused:
            why = "whose body runs when the unit has ended"
            self._find("UOW305", node, what=f"@transactional refuses generator function {node.name!r}, {why}")
        if facts.too_high is not None:
            self._find("UOW306", facts.too_high, decorator=f"@{shown(facts.too_high)}")

    def _judge_view(self, node: DefinedNode, around: _Around) -> None:
        is_told = around.has_commit or around.facts.too_high is not None
        if around.facts.is_view and around.writes and not is_told:
            call, line = around.writes[0]
            self._find("UOW304", node, name=node.name, call=call, line=line)

    def _judge_yields(self, node: ast.With | ast.AsyncWith) -> None:
        function = self._around.scope.node
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)) or not is_generator(function):
            return
        has_yield = any(isinstance(each, (ast.Yield, ast.YieldFrom)) for each in own_nodes(node))
        if has_yield and not may_hold_unit(function):
            self._find("UOW305", node, what=f"A unit of generator function {function.name!r} stays open across a yield")

    # ---- calls

    def visit_Call(self, node: ast.Call) -> None:
        self._judge_call(node)
        self.generic_visit(node)
        self._is_in_unit |= self._enters_unit(node)

    def _enters_unit(self, node: ast.Call) -> bool:
        """Whether a call is ``stack.enter_context(transactional())``, for the rest of the block or function."""
        is_entry = dotted(node.func).rpartition(".")[2] in ("enter_async_context", "enter_context")
        return is_entry and any(self._functions.is_unit(each, self._around.scope) for each in node.args[:1])

    def _judge_call(self, node: ast.Call) -> None:
        method = self._resolver.value(node.func, self._around.scope)
        if isinstance(method, Method):
            self._judge_method(node, method)
        elif method is None or isinstance(method, External):
            self._judge_unknown(node)
        if not (isinstance(method, External) and method.path in HANDING_ON):
            self._judge_arguments(node)
        if changes_by_query(node, self._around.scope, self._resolver):
            self._note_write(node)

    def _judge_method(self, node: ast.Call, method: Method) -> None:
        if method.name in STATEMENTS:
            self._judge_statement(node)
        elif method.name in WRITES:
            self._note_write(node)
        elif not _is_savepoint(node, method):
            self._judge_end(node, method)

    def _judge_end(self, node: ast.expr, method: Method) -> None:
        if method.name in COMMITS | ROLLBACKS:
            self._by_hand(node, method)

    def _judge_statement(self, node: ast.Call) -> None:
        kind = kind_of_argument(node.args[0], self._around.scope) if node.args else Kind.READ
        if kind is Kind.WRITE:
            self._note_write(node)
        elif kind in (Kind.COMMIT, Kind.BEGIN):
            self._by_hand(node, Method("commit"))
        elif kind is Kind.ROLLBACK:
            self._by_hand(node, Method("rollback"))

    def _judge_arguments(self, node: ast.Call) -> None:
        """A method that is handed on is called by somebody else."""
        is_teardown = dotted(node.func).rpartition(".")[2] in TEARDOWNS
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            method = self._resolver.value(argument, self._around.scope)
            if isinstance(method, Method) and not (is_teardown and method.name in CLOSES):
                self._judge_end(argument, method)

    def _judge_unknown(self, node: ast.Call) -> None:
        """A call on something that the source does not tell: a session by its name, or a line for the list."""
        name = self._unknown_method(node)
        if name is None:
            return
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        is_named = owner is not None and _is_called_session(owner)
        if is_named and owner is not None and self._acts_like_session(owner, name):
            is_own = isinstance(owner, ast.Name) and self._is_made_here(owner.id)
            self._by_hand(node, Method(name, is_own))
        elif is_named or name in ("commit", "rollback", ""):
            self.unresolved.append(Unresolved(self._path, node.lineno, self._column(node), shown(node)))

    def _unknown_method(self, node: ast.Call) -> str | None:
        """The name of a method that may be a session's; empty where even that is computed."""
        if isinstance(node.func, ast.Call) and is_any_getattr(node.func):
            owner = self._resolver.value(node.func.args[0], self._around.scope)
            return "" if owner in SESSIONS and not is_getattr(node.func) else None
        if not isinstance(node.func, ast.Attribute) or node.func.attr not in COMMITS | ROLLBACKS:
            return None
        return node.func.attr

    def _acts_like_session(self, owner: ast.expr, name: str) -> bool:
        """Whether something of a session's name does what a session alone does."""
        if name in ("commit", "rollback"):
            return True
        text = ast.unparse(owner)
        calls = (each.func for each in self._around.scope.nodes if isinstance(each, ast.Call))
        methods = (each for each in calls if isinstance(each, ast.Attribute) and each.attr in _TELLING)
        return any(ast.unparse(each.value) == text for each in methods)

    def _is_made_here(self, name: str) -> bool:
        """Whether this function has got something by a call, and so may close it."""
        bindings = self._around.scope.bindings.get(name, ())
        return any(each.how in (How.ASSIGNED, How.ENTERED) and isinstance(each.node, ast.Call) for each in bindings)

    # ---- writes

    def _note_write(self, node: ast.Call) -> None:
        if not self._is_in_unit:
            self._around.writes.append((shown(node), node.lineno))

    # ---- findings

    def _by_hand(self, node: ast.expr, method: Method) -> None:
        may_close = method.is_own or self._around.facts.is_teardown or self._has_engine()
        if (method.name in CLOSES and may_close) or (self._module.is_migration and not self._is_in_unit):
            return
        is_commit = method.name in COMMITS
        self._around.has_commit |= is_commit
        self._find(self._code(is_commit=is_commit), node, call=shown(node))

    def _has_engine(self) -> bool:
        """Whether this function disposes of an engine or configures a session, and so has both in its hands."""
        calls = (each.func for each in self._around.scope.nodes if isinstance(each, ast.Call))
        return any(isinstance(each, ast.Attribute) and each.attr in ("configure", "dispose") for each in calls)

    def _code(self, *, is_commit: bool) -> str:
        if self._is_in_unit:
            return "UOW101" if is_commit else "UOW102"
        if self._is_data_access:
            return "UOW303"
        return "UOW301" if is_commit else "UOW302"

    def _find(self, code: str, node: ast.expr | ast.stmt, **details: object) -> None:
        # A comment on any line of a call, or of a block's head.
        last = node.body[0].lineno - 1 if isinstance(node, _BLOCKS) else node.end_lineno
        what = CHECKS[code].what.format(**details)
        self.findings.append(
            Finding(self._path, node.lineno, self._column(node), code, what, max(last or 0, node.lineno))
        )

    def _column(self, node: ast.expr | ast.stmt) -> int:
        return self._module.column(node.lineno, node.col_offset)


def _is_savepoint(node: ast.Call, method: Method) -> bool:
    """Whether a call is ``begin(nested=True)``."""
    said = [literal(keyword.value) for keyword in node.keywords if keyword.arg == "nested"]
    return method.name == "begin" and (said or [literal(each) for each in node.args[:1]]) == [True]


def _is_called_session(node: ast.expr) -> bool:
    name = dotted(node.func if isinstance(node, ast.Call) else node).rpartition(".")[2]
    return name in USUAL_NAMES or name.lower().endswith(("_session", "dbsession"))
