"""Decides for one module which functions become units, how, and what is left to a human."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from ..lint._functions import DefinedNode, is_generator
from ..lint._resolve import Resolver
from ..lint._scopes import SCOPE_NODES, Binding, Module, Scope, all_nodes
from ..lint._syntax import decorator_names, dotted
from ..lint._values import Method
from ._edits import Edits, Place
from ._effects import Effect, Effects, is_handed_in
from ._paths import InTheWayError, State, follow

NO_EXTENSION = (
    "it waits for the extension. Make UnitOfWork(app, session=db.session) where the app is made, and run this again"
)
SEVERAL_SESSIONS = "the files make more than one session, and a unit is of one. Which one this is, is yours to say"
NO_CONTEXT = (
    "nothing here says that it runs in an app context, which its session does without and a unit does not. "
    "Put @with_appcontext under its command, or with app.app_context() into it, and make a unit there"
)
# What runs for itself, as a view does: in an app context, and where the session needs none maybe without.
_BEFORE_REQUESTS = frozenset(("before_app_request", "before_request"))
_ENTRIES = _BEFORE_REQUESTS | {"command", "shared_task", "task"}
_FLASK_GROUPS = ("AppGroup", "FlaskGroup", ".cli.group")

_LETTING_GO = frozenset(("expire", "expire_all", "expunge", "refresh"))


@dataclass(slots=True)
class Plan:
    """What is to be done in a module.

    :param edits: the changes.
    :param reasons: why a function is left as it is, by the function.
    :param gone: the commits and rollbacks that go.
    :param moved: how many functions and blocks become units.
    """

    edits: Edits = field(default_factory=Edits)
    reasons: dict[ast.AST, str] = field(default_factory=dict)
    gone: set[ast.AST] = field(default_factory=set)
    moved: int = 0


class Planner:
    """Plans the changes of one module after the other.

    :param resolver: knows what names stand for.
    :param effects: knows what code may do.
    :param names: the functions that become units though they are no views.
    :param may_lack_app: whether the session works outside of app contexts.
    """

    def __init__(
        self, resolver: Resolver, effects: Effects, names: Collection[str], *, may_lack_app: bool = False
    ) -> None:
        self._resolver = resolver
        self._effects = effects
        self._names = names
        self._may_lack_app = may_lack_app

    def plan(self, module: Module, obstacle: str = "") -> Plan:
        """What is to be done in a module.

        :param obstacle: why nothing there may become a unit; empty if it may.
        """
        plan = Plan()
        for node, scope in all_nodes(module.scope):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                self._plan_function(node, scope, plan, obstacle)
        return plan

    def named(self, node: DefinedNode, scope: Scope) -> Iterator[str]:
        """The options by which a function is named."""
        full = qualified_name(node, scope)
        return (name for name in self._names if fnmatchcase(full, name) or fnmatchcase(full, f"*.{name}"))

    def _plan_function(self, node: DefinedNode, scope: Scope, plan: Plan, obstacle: str) -> None:
        inner = scope.module.scopes[node]
        commits = list(self._commits(node, inner))
        if not commits:
            return
        try:
            is_named = self._judge(node, scope, obstacle)
            _Mover(node, inner, commits, self, plan, is_entry=not is_named).move()
        except InTheWayError as error:
            plan.reasons[node] = f"{node.name}() is left as it is: {error}."

    def _judge(self, node: DefinedNode, scope: Scope, obstacle: str) -> bool:
        """Whether a function is named by an option; an error if it is nothing that may become a unit."""
        facts = self._effects.functions(scope.module).facts(node, scope)
        is_named = any(self.named(node, scope))
        is_entry = facts.is_view or bool(decorator_names(node) & _ENTRIES)
        if facts.is_unit or facts.too_high is not None:
            raise InTheWayError("it is a unit already, in which nothing else commits", node)
        if not is_entry and not is_named:
            what = "it is no view, command or task"
            raise InTheWayError(f"{what}. Name it with --function, or let it flush and make its callers units", node)
        if isinstance(node, ast.AsyncFunctionDef) or is_generator(node):
            raise InTheWayError("it is a coroutine or generator function", node)
        if obstacle:
            raise InTheWayError(obstacle, node)
        if self._may_lack_app and not (facts.is_view or is_named or _has_context(node, scope)):
            raise InTheWayError(NO_CONTEXT, node)
        taken = [each for each in scope.module.scopes[node].find("transactional") if each.path != _TRANSACTIONAL]
        if taken:
            raise InTheWayError("the name transactional is something else there", node)
        return is_named and not is_entry

    def _commits(self, node: DefinedNode, scope: Scope) -> Iterator[ast.Expr]:
        for inner in scope.nodes:
            if isinstance(inner, ast.Expr) and self.method(inner, scope) == "commit":
                yield inner

    def method(self, node: ast.stmt, scope: Scope) -> str:
        """The method of the session that a statement calls, and does nothing else."""
        if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Call):
            return ""
        call = node.value
        found = self._resolver.value(call.func, scope)
        is_bare = not call.args and not call.keywords and isinstance(call.func, ast.Attribute)
        return found.name if is_bare and isinstance(found, Method) and not found.is_own else ""

    @property
    def effects(self) -> Effects:
        """What code may do."""
        return self._effects


_TRANSACTIONAL = "flask_uow.transactional"


class _Mover:
    """Moves one function."""

    def __init__(
        self,
        node: DefinedNode,
        scope: Scope,
        commits: list[ast.Expr],
        planner: Planner,
        plan: Plan,
        *,
        is_entry: bool,
    ) -> None:
        self._is_entry = is_entry
        self._node = node
        self._scope = scope
        self._commits = commits
        self._planner = planner
        self._effects = planner.effects
        self._plan = plan

    def move(self) -> None:
        """Make a unit of the function, or of blocks in it.

        :raises InTheWayError: if commits are left.
        """
        blocks = [block for block in self._scope.nodes if isinstance(block, ast.Try) and self._commit_of(block)]
        unwrapped = [block for block in blocks if self._only_raises_again(block)]
        try:
            # Who calls a function that is no entry may have written before.
            start = State.CLEAN if self._is_entry else State.WRITTEN
            self._follow(self._node.body, self._commits, unwrapped, start)
        except InTheWayError as error:
            reason = error
        else:
            self._decorate(unwrapped)
            return
        left = [commit for commit in self._commits if not self._put_unit(commit)]
        if left:
            raise reason

    def _follow(
        self, body: Sequence[ast.stmt], commits: Collection[ast.stmt], unwrapped: Collection[ast.Try], start: State
    ) -> None:
        follow(body, self._scope, self._effects, commits=commits, unwrapped=unwrapped, start=start)

    # ---- the whole function

    def _decorate(self, unwrapped: Sequence[ast.Try]) -> None:
        edits = self._plan.edits
        edits.decorated.add(self._place(self._node))
        edits.unwrapped.update(map(self._place, unwrapped))
        for commit in self._commits:
            chosen = edits.flushed if self._needs_flush(commit) else edits.dropped
            chosen.add(self._place(commit))
        for block in unwrapped:
            self._plan.gone.update(self._rollbacks(block))
        self._done(self._commits)

    def _done(self, commits: Sequence[ast.Expr]) -> None:
        self._plan.edits.names.add("transactional")
        self._plan.gone.update(commit.value for commit in commits)
        self._plan.moved += 1

    def _needs_flush(self, commit: ast.Expr) -> bool:
        """Whether what follows may read what the commit has given: keys of rows, or the rows themselves."""
        tail = _tail(self._node.body, commit) or []
        if any(map(_lets_go, tail)) or (self._effects.may_not_flush and any(map(self._asks, tail))):
            return True
        plain = {node for statement in tail for node in self._plain(statement)}
        nodes = (node for statement in tail for node in ast.walk(statement))
        return any(node not in plain and self._may_hold_row(node) for node in nodes)

    def _asks(self, statement: ast.stmt) -> bool:
        return Effect.ASKS in self._effects.of(statement, self._scope)

    def _may_hold_row(self, node: ast.AST) -> bool:
        if self._effects.path(node, self._scope) == "flask.g":
            return True
        if not isinstance(node, ast.Name) or node.id not in self._scope.bindings:
            return False
        return not is_handed_in(node, self._scope) and "form" not in node.id.lower()

    def _plain(self, statement: ast.stmt) -> Iterator[ast.AST]:
        """What a statement hands on and does not look into: what it returns, and the entry's own arguments."""
        for node in ast.walk(statement):
            if isinstance(node, ast.Return) and node.value is not None:
                yield node.value
                if isinstance(node.value, ast.Tuple):
                    yield from node.value.elts
            elif isinstance(node, ast.Call) and self._is_entry:
                handed = (*node.args, *(keyword.value for keyword in node.keywords))
                yield from (each for each in handed if isinstance(each, ast.Name) and self._is_parameter(each.id))

    def _is_parameter(self, name: str) -> bool:
        arguments = self._node.args
        return name in {each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}

    # ---- a block

    def _put_unit(self, commit: ast.Expr) -> bool:
        """Make a unit of the statements before a commit, which ends there as it did; whether that holds."""
        *outer, (owner, body) = _ways_to(self._node, commit)
        index = body.index(commit)
        block = owner if isinstance(owner, ast.Try) and body is owner.body else None
        around = [*outer, (owner, body)] if block is None else outer
        if not _have_own_lines(owner, body) or any(map(_catches, around)):
            return False
        if block is None or not block.handlers:
            is_first = body is self._node.body and self._is_entry
            starts = self._starts(body, index, State.CLEAN if is_first else State.WRITTEN)
        elif all(map(self._rolls_back, block.handlers)):
            starts = [(0, State.WRITTEN)] if index else []
        else:
            return False
        start = next(
            (number for number, state in starts if self._holds(body[number : index + 1], commit, state)), index
        )
        if start == index:
            return False
        self._plan.edits.units[self._place(commit)] = index - start
        if block is not None and not self._may_roll_back_more(body[index + 1 :]):
            self._take_rollbacks(block)
        self._done((commit,))
        return True

    def _starts(self, body: Sequence[ast.stmt], index: int, state: State) -> list[tuple[int, State]]:
        """Where the unit of a commit may begin, and what may be written there, since the last end of a transaction.

        Where the session is first asked, so that what is read belongs to it; else where something is first written.
        """
        effects = [self._effects.of(statement, self._scope) for statement in body[:index]]
        ends = [number for number, effect in enumerate(effects, 1) if Effect.ENDS in effect]
        numbers = range(ends[-1] if ends else 0, index)
        writes = next((number for number in numbers if Effect.WRITES in effects[number]), None)
        asks = next((number for number in numbers if effects[number] & (Effect.ASKS | Effect.WRITES)), None)
        if writes is None or asks is None:
            return []
        return [(asks, State.WRITTEN if ends else state), (writes, State.WRITTEN)]

    def _holds(self, body: Sequence[ast.stmt], commit: ast.Expr, state: State) -> bool:
        """Whether all ways through statements that end well end in their commit."""
        try:
            self._follow(body, (commit,), (), state)
        except InTheWayError:
            return False
        return True

    def _may_roll_back_more(self, rest: Sequence[ast.stmt]) -> bool:
        """Whether what follows a commit in its ``try`` leaves the handlers something to roll back."""
        return any(self._effects.of(each, self._scope) & (Effect.WRITES | Effect.ENDS) for each in rest)

    def _take_rollbacks(self, block: ast.Try) -> None:
        rollbacks = list(self._rollbacks(block))
        self._plan.gone.update(rollbacks)
        if self._only_raises_again(block):
            self._plan.edits.unwrapped.add(self._place(block))
        else:
            self._plan.edits.dropped.update(map(self._place, rollbacks))

    def _rolls_back(self, handler: ast.ExceptHandler) -> bool:
        """Whether a handler first rolls back, whatever it logs before, or hands on what it has caught."""
        for statement in handler.body:
            if self._planner.method(statement, self._scope) == "rollback":
                return True
            if isinstance(statement, ast.Raise):
                return True
            is_quiet = isinstance(statement, (ast.Assign, ast.Expr)) and not (
                self._effects.of(statement, self._scope) & ~Effect.TELLS
            )
            if not is_quiet:
                return False
        return False

    def _only_raises_again(self, block: ast.Try) -> bool:
        """Whether a ``try`` does what a unit does: roll back and raise again."""
        if block.orelse or block.finalbody or not block.handlers:
            return False
        lines = self._scope.module.lines
        first = block.handlers[0].lineno
        # What is set further out than the body is about the handlers.
        above = [line for line in lines[block.body[-1].end_lineno : first - 1] if _indent(line) <= block.col_offset]
        about = [lines[block.lineno - 1], *above, *lines[first - 1 : block.end_lineno]]
        has_comment = any("#" in line for line in about)
        return not has_comment and all(map(self._is_rollback_and_raise, block.handlers))

    def _is_rollback_and_raise(self, handler: ast.ExceptHandler) -> bool:
        *before, last = handler.body
        is_bare = isinstance(last, ast.Raise) and last.exc is None
        return is_bare and len(before) == 1 and self._planner.method(before[0], self._scope) == "rollback"

    def _rollbacks(self, block: ast.Try) -> Iterator[ast.AST]:
        """The first rollback of each handler."""
        for handler in block.handlers:
            for statement in handler.body:
                if isinstance(statement, ast.Expr) and self._planner.method(statement, self._scope) == "rollback":
                    yield statement.value
                    break

    def _commit_of(self, block: ast.Try) -> bool:
        return any(each in self._commits for each in block.body)

    def _place(self, node: ast.AST) -> Place:
        line: int = getattr(node, "lineno", 1)
        return line, self._scope.module.column(line, getattr(node, "col_offset", 0)) - 1


def qualified_name(node: DefinedNode, scope: Scope) -> str:
    """The full name of a function: its module's, its classes', its own."""
    names = [node.name]
    outer: Scope | None = scope
    while outer is not None:
        names.append(getattr(outer.node, "name", outer.module.name))
        outer = outer.parent
    return ".".join(names[::-1])


def _has_context(node: DefinedNode, scope: Scope) -> bool:
    """Whether decorators see to it that a function runs in an app context, or it pushes one itself."""
    if decorator_names(node) & (_BEFORE_REQUESTS | {"with_appcontext"}):
        return True
    if any(isinstance(inner, ast.Attribute) and inner.attr == "app_context" for inner in ast.walk(node)):
        return True
    calls = (each.func if isinstance(each, ast.Call) else each for each in node.decorator_list)
    owners = [dotted(call).rpartition(".")[0] for call in calls]
    return any(owner.endswith(".cli") or any(map(_is_of_flask, scope.find(owner))) for owner in owners if owner)


def _is_of_flask(group: Binding) -> bool:
    """Whether a group of commands is one of Flask's, which pushes a context around each."""
    made = group.node.decorator_list if isinstance(group.node, ast.FunctionDef) else [group.node]
    return any(name in ast.unparse(each) for each in made if each is not None for name in _FLASK_GROUPS)


def _ways_to(node: ast.stmt, wanted: ast.stmt) -> list[tuple[ast.stmt, list[ast.stmt]]]:
    """The statements around a statement, from the outermost on, each with the block of it that leads there."""
    for body in _blocks(node):
        if wanted in body:
            return [(node, body)]
        for statement in body:
            if not isinstance(statement, SCOPE_NODES) and (found := _ways_to(statement, wanted)):
                return [(node, body), *found]
    return []


def _catches(way: tuple[ast.stmt, list[ast.stmt]]) -> bool:
    """Whether what is raised in a block may be caught there: what has not been committed may go on from there."""
    node, body = way
    if isinstance(node, (ast.Try, ast.TryStar)):
        return body is node.body and bool(node.handlers)
    items = node.items if isinstance(node, ast.With) else []
    return any("suppress" in ast.unparse(item.context_expr) for item in items)


def _lets_go(statement: ast.stmt) -> bool:
    """Whether the session forgets there what waits to be written."""
    names = (node.attr for node in ast.walk(statement) if isinstance(node, ast.Attribute))
    return not _LETTING_GO.isdisjoint(names)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _have_own_lines(owner: ast.stmt, body: Sequence[ast.stmt]) -> bool:
    lines = [owner.lineno, *(statement.lineno for statement in body)]
    return len({*lines}) == len(lines)


def _tail(body: Sequence[ast.stmt], commit: ast.stmt) -> list[ast.stmt] | None:
    """What may run after a statement; None if it does not stand in a body."""
    for index, statement in enumerate(body):
        if statement is commit:
            return list(body[index + 1 :])
        for block in _blocks(statement):
            found = _tail(block, commit)
            if found is not None:
                is_end = any(isinstance(each, (ast.Return, ast.Raise)) for each in found)
                return found if is_end else [*found, *body[index + 1 :]]
    return None


def _blocks(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    for name in ("body", "orelse", "finalbody"):
        block = getattr(statement, name, None)
        if isinstance(block, list):
            yield block
    for part in (*getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
        yield part.body
