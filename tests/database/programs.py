"""Random programs of units, run for real and on a plain model of the contract's tables.

A program is a tree of frozen steps. :class:`Model` knows rows, units and hooks as lists and nothing of databases; what
it says is in the database after a program, and which hooks have run, has to be so.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace

import sqlalchemy as sa
from hypothesis import strategies as st

from flask_uow import Propagation, current_unit, transactional
from tests.database.conftest import Bench
from tests.models import Item, names

INDEPENDENT = ("requires_new", "not_supported")
JOINING = ("required", "mandatory", "supports")
PROPAGATIONS = ("nested", *JOINING, *INDEPENDENT, "never")


class AppError(Exception):
    """The program's own error."""


class OtherError(Exception):
    """What the model raises where a database or the library would: nobody asks which."""


class ConflictError(OtherError):
    """What the model raises where the server says 40001."""


# ---- the steps


@dataclass(frozen=True)
class Add:
    """Write a row and send it; its name counts the rows that were written."""


@dataclass(frozen=True)
class Fail:
    """Raise the program's own error."""


@dataclass(frozen=True)
class Hook:
    """Ask for something at the end.

    :param when: ``before_commit`` writes a row, the others leave a note.
    """

    when: str


@dataclass(frozen=True)
class RollbackOnly:
    """Set the innermost unit to roll back."""


@dataclass(frozen=True)
class ByHand:
    """End or begin the transaction past the unit, and swallow what comes of it.

    :param how: a method of the session, or ``connection``: its connection's commit.
    """

    how: str


@dataclass(frozen=True)
class Break:
    """Meet an error of the database and swallow it.

    :param how: by a ``flush``, or by a ``statement``.
    """

    how: str


@dataclass(frozen=True)
class Kill:
    """End the server's session, as an administrator may."""


@dataclass(frozen=True)
class Conflict:
    """Meet a serialization failure.

    :param attempts: in how many of the outermost unit's first attempts.
    """

    attempts: int


@dataclass(frozen=True)
class Unit:
    """Call a decorated function.

    :param is_caught: whether its exceptions are swallowed by the caller.
    :param keeps: whether the program's own error commits.
    """

    propagation: str
    body: tuple[Step, ...]
    is_caught: bool = False
    keeps: bool = False
    retries: int = 0
    durable: bool = False


Step = Add | Fail | Hook | RollbackOnly | ByHand | Break | Kill | Conflict | Unit


def steps(*, on_server: bool) -> st.SearchStrategy[tuple[Step, ...]]:
    """Programs for a database.

    :param on_server: whether it is a server, whose sessions can be killed and whose transactions conflict.
    """
    plain: list[st.SearchStrategy[Step]] = [
        st.just(Add()),
        st.just(Add()),
        st.just(Fail()),
        st.builds(Hook, st.sampled_from(("before_commit", "after_commit", "after_rollback"))),
        st.just(RollbackOnly()),
        st.builds(ByHand, st.sampled_from(("commit", "rollback", "begin", "close", "connection"))),
        st.builds(Break, st.sampled_from(("flush", "statement"))),
    ]
    if on_server:
        plain += [st.just(Kill()), st.builds(Conflict, st.integers(1, 3))]

    def unit(bodies: st.SearchStrategy[Step]) -> st.SearchStrategy[Step]:
        return st.builds(
            Unit,
            propagation=st.sampled_from((*PROPAGATIONS, "nested", "required")),
            body=st.lists(bodies, max_size=5).map(tuple),
            is_caught=st.booleans(),
            keeps=st.booleans(),
            retries=st.sampled_from((0, 0, 2)),
            durable=st.sampled_from((False, False, False, True)),
        ).map(_without_contradiction)

    step = st.recursive(st.one_of(plain), unit, max_leaves=12)
    return st.lists(st.one_of(unit(step), step), min_size=1, max_size=5).map(tuple)


def _without_contradiction(unit: Unit) -> Unit:
    """What is refused when it is decorated is no program."""
    return unit if unit.propagation in ("nested", "required") else replace(unit, durable=False)


# ---- for real


class Machine:
    """Runs a program on a bench."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.added = 0
        self.notes: list[str] = []
        self.hooked = 0
        self.error: Exception | None = None

    def run(self, program: tuple[Step, ...]) -> tuple[list[str], list[str], str | None]:
        """Run a program under one app context.

        :return: the rows that a second connection sees, the hooks' notes, and which kind of error left.
        """
        left = None
        with self.bench.app.app_context():
            try:
                self._steps(program)
            except AppError:
                left = "app"
            except Exception as error:  # noqa: BLE001  # which one is not compared
                left, self.error = "other", error
        return names(self.bench.database), self.notes, left

    def _steps(self, program: tuple[Step, ...]) -> None:
        for step in program:
            getattr(self, f"_{type(step).__name__.lower()}")(step)

    def _add(self, step: Add) -> None:
        self.added += 1
        self.bench.add(f"{self.added:03}")

    def _fail(self, step: Fail) -> None:
        raise AppError

    def _hook(self, step: Hook) -> None:
        if not current_unit:
            return
        self.hooked += 1
        name = f"{step.when} {self.hooked}"
        note = (lambda: self._add(Add())) if step.when == "before_commit" else (lambda: self.notes.append(name))
        getattr(current_unit, step.when)(note)

    def _rollbackonly(self, step: RollbackOnly) -> None:
        if current_unit:
            current_unit.set_rollback_only()

    def _byhand(self, step: ByHand) -> None:
        if not current_unit:
            return
        with suppress(Exception):
            if step.how == "connection":
                self.bench.session.connection().commit()
            else:
                getattr(self.bench.session, step.how)()

    def _break(self, step: Break) -> None:
        if not current_unit:
            return
        with suppress(Exception):
            if step.how == "flush":
                self.bench.session.add(Item(id=0, name="taken"))
                self.bench.session.flush()
            else:
                self.bench.run_sql("INSERT INTO item (id, name) VALUES (0, 'taken')")

    def _kill(self, step: Kill) -> None:
        if current_unit:
            with suppress(Exception):
                self.bench.database.kill(self.bench.session.scalar(sa.text("SELECT pg_backend_pid()")) or 0)

    def _conflict(self, step: Conflict) -> None:
        if current_unit and current_unit.attempt <= step.attempts:
            self.bench.run_sql("DO $$ BEGIN RAISE EXCEPTION 'conflict' USING ERRCODE = '40001'; END $$")

    def _unit(self, step: Unit) -> None:
        @transactional(
            propagation=Propagation(step.propagation),
            no_rollback_for=AppError if step.keeps else (),
            retries=step.retries,
            durable=step.durable,
        )
        def body() -> None:
            self._steps(step.body)

        with suppress(Exception if step.is_caught else _NothingError):
            body()


class _NothingError(Exception):
    """What nobody raises."""


# ---- as the contract's tables have it


@dataclass
class Frame:
    """A savepoint or an outermost unit, or what a session did before any.

    :ivar is_failed: whether its end can only be a failure.
    :ivar dead_by: what has made the database refuse every statement in it: a ``flush`` or a ``statement``.
    :ivar is_sent: whether its server knows it: a savepoint is sent with the first statement in it.
    """

    rows: list[str] = field(default_factory=list)
    hooks: list[tuple[str, str]] = field(default_factory=list)
    is_failed: bool = False
    dead_by: str = ""
    is_sent: bool = False
    is_rollback_only: bool = False


@dataclass
class Conversation:
    """One session: its frames, and whether its transaction as a whole is lost.

    :ivar frames: the first one is what came before any unit.
    :ivar is_broken: whether that was by hand, which is an error at whatever comes next.
    :ivar is_killed: whether the server has ended its session, and nobody has noticed yet.
    """

    frames: list[Frame] = field(default_factory=lambda: [Frame()])
    is_lost: bool = False
    is_broken: bool = False
    is_killed: bool = False
    is_connected: bool = False

    @property
    def top(self) -> Frame:
        return self.frames[-1]

    @property
    def has_unit(self) -> bool:
        return len(self.frames) > 1

    @property
    def has_failed(self) -> bool:
        return self.top.is_failed or self.is_lost or any(frame.dead_by for frame in self.frames)

    def speak(self, how: str = "statement") -> None:
        """Send something.

        :param how: by a ``flush``, or as a ``statement``.
        """
        if self.is_lost or any(frame.dead_by for frame in self.frames):
            if how == "flush":
                self.top.dead_by = "flush"
            raise OtherError
        self.is_connected = True
        if self.is_killed:
            self.is_lost = True
            self.top.dead_by = how
            raise OtherError
        for frame in self.frames:
            frame.is_sent = True


class Model:
    """Runs a program on lists.

    :param on_server: whether errors abort a transaction, and there may be several writers.
    """

    def __init__(self, *, on_server: bool) -> None:
        self.on_server = on_server
        self.added = 0
        self.hooked = 0
        self.notes: list[str] = []
        self.committed: list[str] = []
        self.talks = [Conversation()]
        self.attempts: list[int] = []

    def run(self, program: tuple[Step, ...]) -> tuple[list[str], list[str], str | None]:
        """Run a program, and say what :meth:`Machine.run` has to."""
        left = None
        try:
            self._steps(program)
        except AppError:
            left = "app"
        except OtherError:
            left = "other"
        return sorted(self.committed), self.notes, left

    @property
    def _talk(self) -> Conversation:
        return self.talks[-1]

    def _steps(self, program: tuple[Step, ...]) -> None:
        for step in program:
            getattr(self, f"_{type(step).__name__.lower()}")(step)

    def _add(self, step: Add) -> None:
        self.added += 1
        self._talk.speak("flush")
        self._talk.top.rows.append(f"{self.added:03}")

    def _fail(self, step: Fail) -> None:
        raise AppError

    def _hook(self, step: Hook) -> None:
        if self._talk.has_unit:
            self.hooked += 1
            self._talk.top.hooks.append((step.when, f"{step.when} {self.hooked}"))

    def _rollbackonly(self, step: RollbackOnly) -> None:
        if self._talk.has_unit:
            self._talk.top.is_rollback_only = True

    def _byhand(self, step: ByHand) -> None:
        talk = self._talk
        if talk.has_unit and step.how == "connection" and talk.top.dead_by != "flush":
            talk.is_lost = talk.is_broken = talk.is_connected = True

    def _break(self, step: Break) -> None:
        if self._talk.has_unit:
            with suppress(OtherError):
                self._talk.speak(step.how)
                if step.how == "flush" or self.on_server:
                    self._talk.top.dead_by = step.how

    def _kill(self, step: Kill) -> None:
        if self._talk.has_unit:
            with suppress(OtherError):
                self._talk.speak()
                self._talk.is_killed = True

    def _conflict(self, step: Conflict) -> None:
        if self._talk.has_unit and self.attempts[-1] <= step.attempts:
            self._talk.speak()
            self._talk.top.dead_by = "statement"
            raise ConflictError

    def _unit(self, step: Unit) -> None:
        with suppress(*([AppError, OtherError] if step.is_caught else [])):
            self._call(step)

    def _call(self, step: Unit) -> None:
        is_inside = self._talk.has_unit
        if is_inside and (step.durable or step.propagation == "never"):
            raise OtherError
        if not is_inside and step.propagation == "mandatory":
            raise OtherError
        if not is_inside and step.propagation in ("supports", "not_supported", "never"):
            self._steps(step.body)
        elif not is_inside:
            self._outermost(step)
        elif step.propagation in INDEPENDENT:
            self._independent(step)
        elif step.propagation in JOINING:
            self._join(step)
        else:
            self._savepoint(step)

    def _independent(self, step: Unit) -> None:
        if not self.on_server and self._talk.is_connected:
            raise OtherError
        self.talks.append(Conversation())
        try:
            if step.propagation == "requires_new":
                self._outermost(step)
            else:
                self._steps(step.body)
        finally:
            self.talks.pop()

    def _body(self, step: Unit, attempt: int) -> Exception | None:
        self.attempts.append(attempt)
        try:
            self._steps(step.body)
        except (AppError, OtherError) as error:
            return error
        finally:
            self.attempts.pop()
        return None

    def _decide(self, step: Unit, error: Exception | None) -> str:
        frame, is_failed = self._talk.top, self._talk.has_failed
        if error is not None and not (isinstance(error, AppError) and step.keeps and not is_failed):
            return "rollback"
        return "rollback" if frame.is_rollback_only else "fail" if is_failed else "commit"

    def _join(self, step: Unit) -> None:
        error = self._body(step, 1)
        frame, is_failed = self._talk.top, self._talk.has_failed
        if error is not None and not (isinstance(error, AppError) and step.keeps and not is_failed):
            frame.is_failed = True
        elif is_failed:
            frame.is_failed = True
            raise OtherError
        if error is not None:
            raise error

    def _savepoint(self, step: Unit) -> None:
        talk = self._talk
        if talk.is_broken or talk.top.dead_by == "flush":
            raise OtherError
        talk.frames.append(Frame())
        error = self._body(step, 1)
        decision = self._decide(step, error)
        if talk.is_killed and talk.top.is_sent:
            talk.is_lost = True
            if decision == "commit":
                decision, error = "rollback", OtherError()
        frame = talk.frames.pop()
        if decision == "commit":
            talk.top.rows += frame.rows
            talk.top.hooks += frame.hooks
        else:
            talk.top.hooks += [("end", name) for when, name in frame.hooks if when in ("after_rollback", "end")]
        if decision == "fail":
            raise OtherError
        if error is not None:
            raise error

    def _outermost(self, step: Unit) -> None:
        attempt = 1
        while True:
            talk = self._talk
            is_repeatable = not talk.top.rows
            talk.frames.append(Frame())
            error = self._body(step, attempt)
            decision, error = self._end(step, error)
            if isinstance(error, ConflictError) and decision != "commit" and is_repeatable and attempt <= step.retries:
                self.talks[-1] = Conversation()
                attempt += 1
                continue
            hooks = talk.top.hooks
            self.talks[-1] = Conversation()
            due = {"commit": ("after_commit", "end"), "rollback": ("after_rollback", "end")}.get(decision, ())
            self.notes += [name for when, name in hooks if when in due]
            if error is not None:
                raise error
            return

    def _end(self, step: Unit, error: Exception | None) -> tuple[str, Exception | None]:
        """What becomes of an outermost unit, and what leaves it."""
        talk = self._talk
        decision = self._decide(step, error)
        if decision == "fail":
            return "rollback", OtherError()
        if decision == "rollback":
            return decision, error
        try:
            for when, _ in talk.top.hooks:
                if when == "before_commit":
                    self._add(Add())
        except OtherError as failure:
            return "rollback", failure
        if talk.is_killed:
            return "in doubt", OtherError()
        for frame in talk.frames:
            self.committed += frame.rows
        return "commit", error
