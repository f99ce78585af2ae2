"""The ways through a function: whether each that ends well ends in the commit, with nothing after it that cares.

A unit commits where its function returns, whichever way it takes, and rolls back where it raises. So a commit by hand
can go where all of this holds: no way returns with writes that it did not commit; after the commit nothing is written,
told to others or raised on purpose; there is no second commit, and no rollback by hand.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Sequence
from enum import Enum
from typing import Any

from ..lint._scopes import Scope
from ..lint._syntax import dotted, shown
from ._effects import Effect, Effects


class State(Enum):
    """How far a way has come."""

    CLEAN = "nothing is written"
    WRITTEN = "something may be written, and is not committed"
    COMMITTED = "the commit has been"


States = frozenset[State]
NOWHERE: States = frozenset()


class InTheWayError(Exception):
    """Something that keeps a function from becoming a unit; the text says what, and where.

    :param node: where.
    """

    def __init__(self, why: str, node: ast.AST) -> None:
        super().__init__(why)
        self.node = node


def follow(
    body: Sequence[ast.stmt],
    scope: Scope,
    effects: Effects,
    *,
    commits: Collection[ast.stmt],
    unwrapped: Collection[ast.Try] = (),
    start: State = State.CLEAN,
) -> None:
    """Follow all ways through a body.

    :param commits: the statements that commit by hand and are to go.
    :param unwrapped: the ``try`` statements that are to go, with handlers that roll back and raise again.
    :param start: how the body is entered.
    :raises InTheWayError: for the first thing that stands in the way.
    """
    ways = _Ways(scope, effects, commits, unwrapped)
    end = ways.body(body, frozenset((start,)))
    ways.leave(end, body[-1])


class _Ways:
    def __init__(
        self, scope: Scope, effects: Effects, commits: Collection[ast.stmt], unwrapped: Collection[ast.Try]
    ) -> None:
        self._scope = scope
        self._effects = effects
        self._commits = commits
        self._unwrapped = unwrapped
        self._guards: list[str] = []
        self._finals: list[list[ast.stmt]] = []
        self._breaks: list[States] | None = None
        self._seen: list[set[State]] = []
        self._by_type: dict[type[ast.stmt], Callable[[Any, States], States]] = {
            ast.If: self._if,
            ast.For: self._for,
            ast.While: self._while,
            ast.Try: self._try,
            ast.TryStar: self._try,
            ast.With: self._with,
            ast.Match: self._match,
            ast.Return: self._return,
            ast.Raise: self._raise,
            ast.Break: self._break,
            ast.Continue: self._break,
            ast.FunctionDef: lambda node, states: states,
            ast.AsyncFunctionDef: lambda node, states: states,
            ast.ClassDef: lambda node, states: states,
        }

    def body(self, body: Sequence[ast.stmt], states: States) -> States:
        """Follow the ways through a block, and say how they leave it."""
        for statement in body:
            if not states:
                raise InTheWayError(f"line {statement.lineno} is never reached", statement)
            states = self._statement(statement, states)
            for seen in self._seen:
                seen.update(states)
        return states

    def leave(self, states: States, node: ast.stmt) -> None:
        """A way ends here, and ends well."""
        if State.WRITTEN in states:
            raise InTheWayError(
                f"it may end in line {node.end_lineno} with writes that it has not committed, and a unit would", node
            )

    # ---- statements

    def _statement(self, node: ast.stmt, states: States) -> States:
        if node in self._commits:
            return self._commit(node, states)
        by_type = self._by_type.get(type(node))
        if by_type is not None:
            return by_type(node, states)
        if isinstance(node, (ast.AsyncFor, ast.AsyncWith)):
            raise InTheWayError("it is asynchronous", node)
        after = self._run(node, states)
        return NOWHERE if isinstance(node, ast.Expr) and _is_abort(node.value) else after

    def _commit(self, node: ast.stmt, states: States) -> States:
        if self._guards:
            raise InTheWayError(f"the commit stands in {self._guards[-1]}", node)
        if State.COMMITTED in states:
            raise InTheWayError("it may commit more than once", node)
        return frozenset((State.COMMITTED,))

    def _run(self, node: ast.AST, states: States) -> States:
        """Run what has no blocks."""
        effect = self._effects.of(node, self._scope)
        line = getattr(node.context_expr if isinstance(node, ast.withitem) else node, "lineno", 0)
        if Effect.ENDS in effect:
            raise InTheWayError(f"line {line} ends a transaction, or calls what does: {_text(node)}", node)
        if State.COMMITTED in states:
            self._judge_after_commit(node, effect, line)
        after = frozenset((State.WRITTEN,)) if Effect.WRITES in effect else states
        for seen in self._seen:
            seen.update(after)
        return after

    def _judge_after_commit(self, node: ast.AST, effect: Effect, line: int) -> None:
        if Effect.WRITES in effect:
            raise InTheWayError(f"line {line} may write after the commit: {_text(node)}", node)
        if Effect.TELLS in effect:
            what = f"line {line} may tell others, who would hear of it before the commit: {_text(node)}"
            raise InTheWayError(f"{what}; hand that to current_unit.after_commit()", node)
        if Effect.RAISES in effect:
            raise InTheWayError(f"line {line} may raise after the commit, and a unit would roll back", node)

    def _return(self, node: ast.Return, states: States) -> States:
        if node.value is not None:
            states = self._run(node, states)
        if not _is_abort(node.value):
            self.leave(self._through_finals(states), node)
        return NOWHERE

    def _raise(self, node: ast.Raise, states: States) -> States:
        if node.exc is not None:
            self._run(node.exc, states)
        if State.COMMITTED in states:
            raise InTheWayError(f"line {node.lineno} raises after the commit, and a unit would roll back", node)
        return NOWHERE

    def _break(self, node: ast.Break | ast.Continue, states: States) -> States:
        if self._breaks is None:
            raise InTheWayError(f"line {node.lineno} leaves before the commit", node)
        self._breaks.append(self._through_finals(states))
        return NOWHERE

    def _through_finals(self, states: States) -> States:
        """Follow a way that leaves from inside: each ``finally`` block around it runs, from the innermost on."""
        finals = self._finals
        for number in range(len(finals) - 1, -1, -1):
            self._finals = finals[:number]
            states = self.body(finals[number], states) if states else states
        self._finals = finals
        return states

    # ---- blocks

    def _if(self, node: ast.If, states: States) -> States:
        states = self._run(node.test, states)
        return self.body(node.body, states) | self.body(node.orelse, states)

    def _for(self, node: ast.For, states: States) -> States:
        return self._loop(node, self._run(node.target, self._run(node.iter, states)))

    def _while(self, node: ast.While, states: States) -> States:
        return self._loop(node, self._run(node.test, states))

    def _loop(self, node: ast.For | ast.While, states: States) -> States:
        outer, breaks = self._breaks, list[States]()
        self._breaks = breaks
        self._guards.append("a loop")
        # A second time, for what the first has written.
        for _ in State:
            states |= self.body(node.body, states)
            states |= frozenset().union(*breaks)
        self._guards.pop()
        self._breaks = outer
        return states | self.body(node.orelse, states)

    def _match(self, node: ast.Match, states: States) -> States:
        states = self._run(node.subject, states)
        ends = []
        for case in node.cases:
            states = states if case.guard is None else self._run(case.guard, states)
            ends.append(self.body(case.body, states))
        return states.union(*ends)

    def _with(self, node: ast.With, states: States) -> States:
        names = set()
        for item in node.items:
            states = self._run(item, states)
            names.add(_name(item.context_expr))
        if names == {"no_autoflush"}:
            return self.body(node.body, states)
        seen = self._guarded(node.body, states, f"the with block of line {node.lineno}")
        # What suppress() swallows may have happened anywhere.
        return seen[0] | seen[1] if "suppress" in names else seen[0]

    def _guarded(self, body: Sequence[ast.stmt], states: States, guard: str) -> tuple[States, States]:
        """Follow a block in which no commit may stand: how it ends, and all that was on the way."""
        seen = set(states)
        self._seen.append(seen)
        self._guards.append(guard)
        after = self.body(body, states)
        self._guards.pop()
        self._seen.pop()
        return after, frozenset(seen)

    def _try(self, node: ast.Try, states: States) -> States:
        if node in self._unwrapped:
            return self.body(node.body, states)
        self._finals.append(node.finalbody)
        after, seen = self._guarded(node.body, states, f"the try block of line {node.lineno}")
        for handler in node.handlers:
            seen = seen if handler.type is None else self._run(handler.type, seen)
        ends = [self.body(node.orelse, after), *(self.body(handler.body, seen) for handler in node.handlers)]
        end: States = frozenset().union(*ends)
        self._finals.pop()
        if node.finalbody:
            self._guarded(node.finalbody, seen | end, f"the finally block of line {node.lineno}")
            end = self.body(node.finalbody, end)
        return end


def _name(node: ast.expr) -> str:
    """The last name of what a with block enters."""
    return dotted(node.func if isinstance(node, ast.Call) else node).rpartition(".")[2]


def _is_abort(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Call) and dotted(node.func).rpartition(".")[2] == "abort"


def _text(node: ast.AST) -> str:
    calls = [inner for inner in ast.walk(node) if isinstance(inner, ast.Call)]
    return shown(calls[0] if calls else node)
