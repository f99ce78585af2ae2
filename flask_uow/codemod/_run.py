"""Changes files: reads all of them, finds or plans the extension, plans each file, and edits what has a plan."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import libcst

from ..exceptions import ConfigurationError
from ..lint import Settings
from ..lint._files import find_files
from ..lint._functions import DefinedNode
from ..lint._project import Project, UnreadableError, read_bytes
from ..lint._resolve import Resolver
from ..lint._run import Checker
from ..lint._scopes import Module, Scope, all_nodes
from ._edits import Edits, Place, edit
from ._effects import Effects
from ._plan import NO_EXTENSION, SEVERAL_SESSIONS, Plan, Planner
from ._report import Change, Left, Report
from ._setup import Setups, works_without_app

_TOLD = frozenset(("UOW101", "UOW102", "UOW301", "UOW302", "UOW303", "UOW304"))


def change_paths(paths: Iterable[Path], settings: Settings, functions: Collection[str] = ()) -> Report:
    """Find out what changes in files, and in the folders' files; nothing is written.

    :param settings: the checker's: what is a session, what is left out.
    :param functions: the names of functions that become units though they are no views.
    :raises ConfigurationError: for the name of a function that is not there.
    """
    files, _ = find_files(paths, settings)
    return _Run(files, settings, functions).report()


class _Run:
    def __init__(self, files: list[Path], settings: Settings, functions: Collection[str]) -> None:
        self._report = Report(files=len(files))
        self._checker = Checker(settings)
        self._project = Project([settings.folder, Path.cwd()])
        self._resolver = Resolver(self._project, settings.sessions, settings.units)
        self._modules = dict(self._read(files))
        effects = Effects(self._resolver, self._modules.values())
        self._setups = Setups(self._project, self._resolver)
        self._sessions = [made for module in self._modules.values() for made in self._setups.sessions_in(module)]
        may_lack_app = any(map(works_without_app, self._sessions))
        self._planner = Planner(self._resolver, effects, functions, may_lack_app=may_lack_app)
        self._check_names(functions)

    def report(self) -> Report:
        """Plan all files, and change them in memory."""
        modules = self._modules.values()
        edits = {module: Edits() for module in modules}
        obstacle = self._obstacle(edits)
        for path, module in self._modules.items():
            plan = self._planner.plan(module, obstacle) if not module.is_migration else Plan()
            _merge(plan.edits, edits[module])
            if plan.edits and not self._change(path, plan.edits):
                plan = Plan()
            self._report.moved += plan.moved
            self._report.left += self._left(path, module, plan)
        self._report.left.sort()
        return self._report

    def _read(self, files: Iterable[Path]) -> Iterator[tuple[Path, Module]]:
        for path in files:
            try:
                yield path, self._project.read(path)
            except (UnreadableError, RecursionError) as error:
                why = str(error) if isinstance(error, UnreadableError) else "it is nested too deeply"
                self._report.left.append(Left(path.as_posix(), 1, 1, f"the file cannot be read: {why}."))

    def _check_names(self, functions: Collection[str]) -> None:
        """A name that is mistyped would be left out in silence.

        :raises ConfigurationError: for a name that no function has.
        """
        found = {name for node, module_scope in self._functions() for name in self._planner.named(node, module_scope)}
        for name in functions:
            if name not in found:
                raise ConfigurationError(
                    f"--function {name}: no such function.", fix="Name one of the files' functions."
                )

    def _functions(self) -> Iterator[tuple[DefinedNode, Scope]]:
        for module in self._modules.values():
            for node, scope in all_nodes(module.scope):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    yield node, scope

    # ---- the extension

    def _obstacle(self, edits: dict[Module, Edits]) -> str:
        """Plan the extension where there is none; why units would not work all the same."""
        if len(self._sessions) > 1:
            return SEVERAL_SESSIONS
        is_made = any(map(self._setups.is_made_in, edits))
        is_planned = not is_made and [self._set_up(edits, module) for module in edits].count(True) > 0
        return "" if is_made or is_planned else NO_EXTENSION

    def _set_up(self, edits: dict[Module, Edits], module: Module) -> bool:
        """Plan how the apps of a module get the extension; whether one does."""
        setups = list(self._setups.missing_in(module))
        homes = Counter(setup.scope.node for setup in setups)
        # Two in one function may be for one app, which takes one.
        is_clear = all(count == 1 for count in homes.values())
        is_known = all(setup.home is None or setup.home in edits for setup in setups)
        is_taken = any(_is_taken(setup.home or module, "UnitOfWork") for setup in setups)
        if not setups or not is_clear or not is_known or is_taken:
            return False
        for setup in setups:
            edits[module].after[_place(module, setup.statement)] = setup.code
            home = setup.home or module
            edits[home].names.add("UnitOfWork")
            if setup.made is not None:
                edits[home].after[_place(home, setup.made)] = setup.making
            if setup.imported is not None:
                edits[module].imports.add(_place(module, setup.imported))
        return True

    # ---- one file

    def _change(self, path: Path, edits: Edits) -> bool:
        """Change a file in memory; whether that has led to Python."""
        before = read_bytes(path)
        try:
            after = edit(before, edits)
            compile(after, str(path), "exec", dont_inherit=True)
        except (libcst.ParserSyntaxError, SyntaxError, ValueError, RecursionError) as error:
            why = str(error).splitlines()[0]
            self._report.left.append(Left(path.as_posix(), 1, 1, f"the file cannot be changed: {why}"))
            return False
        self._report.changes.append(Change(path, before, after))
        return True

    def _left(self, path: Path, module: Module, plan: Plan) -> Iterator[Left]:
        """What the checker finds that does not go: once for a function whose reason is known."""
        findings, unresolved = self._checker.check(path)
        gone = {(getattr(node, "lineno", 0), _column(module, node)) for node in plan.gone}
        told: set[ast.AST] = set()
        for finding in findings:
            if finding.code not in _TOLD or (finding.line, finding.column) in gone:
                continue
            function = _around(module, finding.line)
            why = plan.reasons.get(function) if function is not None else None
            if why is None:
                yield Left(finding.path, finding.line, finding.column, finding.text)
            elif function is not None and function not in told:
                told.add(function)
                yield Left(finding.path, finding.line, finding.column, why)
        for each in unresolved:
            why = f"{each.call} may be a session's, or not: the source does not tell."
            yield Left(each.path, each.line, each.column, why)


def _merge(edits: Edits, setup: Edits) -> None:
    edits.after.update(setup.after)
    edits.names.update(setup.names)
    edits.imports.update(setup.imports)


def _place(module: Module, node: ast.stmt) -> Place:
    return node.lineno, module.column(node.lineno, node.col_offset) - 1


def _is_taken(module: Module, name: str) -> bool:
    return any(binding.path != f"flask_uow.{name}" for binding in module.scope.find(name))


def _column(module: Module, node: ast.AST) -> int:
    return module.column(getattr(node, "lineno", 1), getattr(node, "col_offset", 0))


def _around(module: Module, line: int) -> ast.AST | None:
    """The innermost function around a line."""
    found: ast.AST | None = None
    for node in module.scopes:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.lineno <= line <= (node.end_lineno or 0):
            found = node if found is None or node.lineno > getattr(found, "lineno", 0) else found
    return found
