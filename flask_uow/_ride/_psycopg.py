"""Statements that ride, on psycopg 3: what waits goes with the next statement, in one flush of libpq's pipeline.

The pipeline is driven below psycopg's own, on the ``pgconn``, so that the same code serves its C and its Python
implementation. What may ride, and what becomes of it, stands in :mod:`flask_uow._ride._riders`.

What is in libpq's hands is either read to its end or the connection is closed: an interrupt leaves nothing between.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import errors, pq, waiting
from psycopg._pipeline import Pipeline
from psycopg._preparing import PrepareManager

from .._drivers._libpq import (
    FATAL_ERROR,
    execute,
    fetch_many,
    hand_on_notifications,
    queue_query,
    send,
    send_query,
    sync,
)
from ._characteristics import OPTION_OFF, QUESTION, QUESTION_AGAIN, QUESTION_WITHOUT_WISH
from ._psycopg_cursors import CURSOR_METHODS, RidingCursor, RidingServerCursor, riding_cursor_class
from ._riders import FAILING, IDLE, IN_ERROR, Riders

if TYPE_CHECKING:
    from psycopg.abc import PQGen, QueryNoTemplate
    from psycopg.pq.abc import PGresult

    from ._psycopg_texts import Text

logger = logging.getLogger(__name__)

# Plain numbers: comparing members of an enumeration takes longer.
ACTIVE = int(pq.TransactionStatus.ACTIVE)
UNKNOWN = int(pq.TransactionStatus.UNKNOWN)
OK = int(pq.ConnStatus.OK)

CONNECTION_METHODS = (
    "_check_connection_ok",
    "_check_intrans_gen",
    "_commit_gen",
    "_deallocate",
    "_exec_command",
    "_get_tx_start_command",
    "_rollback_gen",
    "_start_query",
    "_tpc_begin_gen",
    "_try_cancel",
)
PREPARED_METHODS = ("clear", "maintain_gen", "maybe_add_to_cache", "validate")

# A plan that the server cannot run any more; what it was made for is gone, or has come again as another one.
LOST_PLAN_STATES = frozenset(("XX000", "0A000", "26000"))
READ_ONLY = b"default_transaction_read_only"
# The first server that reports this setting by itself.
REPORTING_VERSION = 140000
# What asks whether a connection lives, in autocommit.
PINGS = frozenset((b";", b"SELECT 1", b"SELECT 1;", b"select 1"))
WAIT_INTERVAL_S = 0.1
CANCEL_TIMEOUT_S = 5.0
ABORTED = "The transaction had failed before it was committed: the server has rolled it back."


class RidingConnection(psycopg.Connection[Any]):
    """A connection on which BEGIN, SAVEPOINT, RELEASE, ROLLBACK TO and SET LOCAL wait for what carries them."""

    is_read_only_at_start = False
    _may_be_standby = False
    # How many round trips it has made, and how many transactions it has begun.
    trips = beginnings = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.riders = Riders()
        self.cursor_factory = RidingCursor
        self.server_cursor_factory = RidingServerCursor
        # Prepared statements that the server is to forget, None for all of them.
        self._forgotten: list[bytes | None] = []
        self._may_have_created = False
        self._is_read_only_by_default = False
        # Whether the start option held once, and whether a text has been sent since that may have changed it.
        self._was_read_only_at_start = self._is_in_doubt = False
        # Whether the statement that is to be sent writes nothing in autocommit.
        self._leaves_default = False
        self._has_batch = False

    def note_read_only_at_start(self) -> bool:
        """Find out, and return, whether ``default_transaction_read_only`` is on by the start options for certain.

        A pooler may have dropped them, or may give each transaction another server's session; none knows the process
        number of one when it greets its client. A standby refuses to say READ WRITE, and an old one does not report
        what it is: it goes on without the option, which a promotion would leave behind. Where the role or the database
        is to be read-only, nobody is to say READ WRITE.
        """
        is_told = self.pgconn.server_version >= REPORTING_VERSION
        is_on = (not is_told or self.pgconn.parameter_status(READ_ONLY) == b"on") and self._ask_read_only(is_told)
        # A primary does not become a standby while it is connected to.
        self._may_be_standby = self.pgconn.parameter_status(b"in_hot_standby") == b"on"
        return is_on

    def _ask_read_only(self, is_told: bool) -> bool:
        with self.lock:
            try:
                result = self.wait(super()._exec_command(QUESTION.encode()))
            except psycopg.ProgrammingError:
                result = self.wait(super()._exec_command(QUESTION_WITHOUT_WISH.encode()))
            pid, setting, is_standby, is_wanted = (result.get_value(0, column) for column in range(4))
            is_on: bool = (pid, setting) == (b"%d" % self.pgconn.backend_pid, b"on")
            is_left = is_standby == b"t" and not is_told
            self._was_read_only_at_start = is_on and not is_left and is_wanted != b"t"
            if is_on and is_left:
                self.wait(super()._exec_command(OPTION_OFF.encode()))
        self.is_read_only_at_start = self._is_read_only_by_default = self._was_read_only_at_start
        return is_on

    def _settle_defaults_gen(self) -> PQGen[None]:
        """Ask whether the start option holds, where a text may have changed that."""
        if self._pipeline is not None or self.pgconn.transaction_status != IDLE:
            return
        self.trips += 1
        result: Any = yield from super()._exec_command(QUESTION_AGAIN.encode())
        is_ours, is_snapshot = (result.get_value(0, column) == b"t" for column in range(2))
        if is_ours and is_snapshot:
            self.trips += 1
            yield from super()._exec_command(OPTION_OFF.encode())
        self.is_read_only_at_start = self._is_read_only_by_default = is_ours and not is_snapshot
        self._is_in_doubt = False

    @property
    def transaction_status(self) -> int:
        """Libpq's number for the transaction's status, as if nothing waited."""
        status = self.pgconn.transaction_status
        return status if status == UNKNOWN else self.riders.status(status)

    @property
    def info(self) -> psycopg.ConnectionInfo:
        """psycopg's, with the status of :attr:`transaction_status`."""
        return _RidingInfo(self)

    def wait(self, gen: PQGen[Any], *arguments: Any, **options: Any) -> Any:
        """Do as psycopg does; but an interrupted statement is cancelled and its connection closed."""
        try:
            if arguments or options:
                return super().wait(gen, *arguments, **options)
            return waiting.wait(gen, self.pgconn.socket, interval=WAIT_INTERVAL_S)
        except BaseException as error:
            if not isinstance(error, Exception):
                gen.close()
                self._settle()
            raise

    def _settle(self) -> None:
        """Leave nothing half read."""
        if self.pgconn.status != OK:
            return
        is_active = self.pgconn.transaction_status == ACTIVE
        if not is_active and self._pipeline is None and not self.pgconn.pipeline_status:
            # Whether the last of them was prepared cannot be known.
            self._prepared.clear()
            return
        try:
            if is_active:
                self._try_cancel(timeout=CANCEL_TIMEOUT_S)
        finally:
            self.pgconn.finish()

    # What psycopg itself sends.

    def _get_tx_start_command(self) -> bytes:
        begin = super()._get_tx_start_command()
        if not self.is_read_only_at_start or self._read_only is not None:
            return begin
        is_standby = self._may_be_standby and self.pgconn.parameter_status(b"in_hot_standby") == b"on"
        return begin if is_standby else begin + b" READ WRITE"

    def _begin(self) -> None:
        """Believe a transaction begun, where psycopg would begin one."""
        status = self.pgconn.transaction_status
        riders = self.riders
        if status == IDLE:
            if riders.is_begun and not riders.is_begin_waiting:
                # A statement's text has ended it.
                self.riders.end()
            if not riders.is_begun and not self._autocommit:
                self.beginnings += 1
                self._may_have_created = False
                riders.begin(self._get_tx_start_command().decode())
            return
        if status > IN_ERROR or (status == ACTIVE and self._pipeline is None):
            if status == ACTIVE:
                # An interrupt has left it there, outside of all that could have seen it.
                self.pgconn.finish()
            self._check_connection_ok()
        riders.is_begun = True

    def _start_query(self) -> PQGen[None]:
        """Send ahead what waits, for all that cannot carry it."""
        self._leaves_default = False
        if self._pipeline is None:
            if self._is_in_doubt:
                yield from self._settle_defaults_gen()
            self._begin()
            self._may_have_created = True
            yield from self._send_ahead_gen()
            self.riders.forget_savepoints()
            return
        if not self._has_batch:
            yield from super()._start_query()
            return
        self._begin()
        self._queue_riders(self._pipeline)

    def _queue_riders(self, pipeline: Pipeline) -> None:
        """Let a batch begin with what waits."""
        if self._has_wrong_default():
            self.trips += 1
            for command in (self._send_set_default, self.pgconn.pipeline_sync):
                pipeline.command_queue.append(command)
                pipeline.result_queue.append(None)
        for rider in self._encode(self.riders.waiting):
            pipeline.command_queue.append(partial(queue_query, self.pgconn, rider))
            pipeline.result_queue.append(None)
        for name in self._take_forgotten():
            pipeline.command_queue.append(partial(self._send_deallocate, name))
            pipeline.result_queue.append(None)
        self.riders.sent()

    def _exec_command(self, command: QueryNoTemplate, *arguments: Any, **options: Any) -> PQGen[PGresult | None]:
        if self._pipeline is None and self.riders.waiting:
            yield from self._send_ahead_gen()
        self.trips += self._pipeline is None and self.pgconn.status == OK
        result = yield from super()._exec_command(command, *arguments, **options)
        if command == b"COMMIT" and result is not None:
            self._read_tag(result)
        return result

    def _read_tag(self, result: PGresult) -> None:
        if result.command_status == b"ROLLBACK":
            self._forget_prepared()
            raise errors.InFailedSqlTransaction(ABORTED)

    def _deallocate(self, name: bytes | None) -> PQGen[None]:
        if self._pipeline is not None:
            yield from super()._deallocate(name)
            return
        if name is None:
            self._forgotten.clear()
        self._forgotten.append(name)

    def _send_deallocate(self, name: bytes | None) -> None:
        if name is None:
            queue_query(self.pgconn, b"DEALLOCATE ALL")
        elif psycopg.capabilities.has_send_close_prepared():
            self.pgconn.send_close_prepared(name)
        else:
            queue_query(self.pgconn, b"DEALLOCATE " + name)

    def _check_intrans_gen(self, attribute: str) -> PQGen[None]:
        if self._pipeline is None and self.transaction_status != self.pgconn.transaction_status:
            status = pq.TransactionStatus(self.transaction_status).name
            raise errors.ProgrammingError(f"can't change {attribute!r} now: connection in transaction status {status}")
        yield from super()._check_intrans_gen(attribute)

    def _commit_gen(self) -> PQGen[None]:
        if self._is_driven_by_psycopg():
            yield from super()._commit_gen()
            return
        riders = self.riders
        is_doomed = riders.is_doomed
        rest = self._encode(riders.for_commit())
        # Before it is sent: what an interrupt leaves is then what the server says.
        riders.end()
        if is_doomed:
            raise errors.InFailedSqlTransaction(ABORTED)
        if rest:
            yield from self._commit_riders_gen(rest)
        elif self.pgconn.transaction_status != IDLE:
            yield from self._control_gen(b"COMMIT")

    def _control_gen(self, command: bytes) -> PQGen[None]:
        """Send a COMMIT or a ROLLBACK by itself."""
        self._check_connection_ok()
        self.trips += 1
        send_query(self.pgconn, command)
        results = yield from execute(self.pgconn)
        self._check_answer(results)
        if command == b"COMMIT":
            self._read_tag(results[0])

    def _commit_riders_gen(self, riders: list[bytes]) -> PQGen[None]:
        try:
            (results,) = yield from self._ride_gen(riders, [partial(queue_query, self.pgconn, b"COMMIT")])
            self._check_answer(results)
        except errors.Error:
            # As after any other COMMIT, no transaction is open.
            if self.pgconn.transaction_status == IN_ERROR:
                yield from self._control_gen(b"ROLLBACK")
                self._forget_prepared()
            raise
        self._read_tag(results[0])

    def rollback(self) -> None:
        """Roll back; where the server knows of no transaction, nothing is waited for."""
        if self.pgconn.transaction_status == IDLE and not self._is_driven_by_psycopg():
            self.riders.end()
        else:
            super().rollback()

    def _rollback_gen(self) -> PQGen[None]:
        if self._is_driven_by_psycopg():
            yield from super()._rollback_gen()
            return
        self.riders.end()
        if self.pgconn.transaction_status == IDLE:
            return
        if self.pgconn.transaction_status == ACTIVE:
            self.pgconn.finish()
        yield from self._control_gen(b"ROLLBACK")
        self._forget_prepared()

    def _is_driven_by_psycopg(self) -> bool:
        return self._pipeline is not None or bool(self._num_transactions) or self._tpc is not None

    def _forget_prepared(self) -> None:
        """Forget prepared statements of what a rollback may have undone."""
        if self._may_have_created:
            self._may_have_created = False
            self._forget_all_prepared()

    def _tpc_begin_gen(self, xid: psycopg.Xid | str) -> PQGen[None]:
        yield from self._send_ahead_gen()
        yield from super()._tpc_begin_gen(xid)
        self.riders.begun()

    # Whole blocks that psycopg drives.

    @contextmanager
    def pipeline(self) -> Iterator[Pipeline]:
        """Do as psycopg does, behind what waits."""
        self._send_ahead()
        self._may_have_created = True
        with self._closed_by_interrupts(), super().pipeline() as pipeline:
            pipeline.__class__ = _CountedPipeline
            yield pipeline

    @contextmanager
    def _pipeline_nolock(self) -> Iterator[Pipeline]:
        if self.riders.is_doomed:
            self.wait(self._fail_gen())
        if self._is_in_doubt:
            self.wait(self._settle_defaults_gen())
        self._has_batch = True
        try:
            with self._closed_by_interrupts(), super()._pipeline_nolock() as pipeline:
                pipeline.__class__ = _CountedPipeline
                yield pipeline
        except Exception:
            # psycopg believes prepared what the server has skipped, and leaves the rest to the rollback.
            self._forget_all_prepared()
            raise
        finally:
            self._has_batch = False

    @contextmanager
    def _closed_by_interrupts(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            interrupt = _interrupt_behind(error)
            if interrupt is None:
                raise
            self.pgconn.finish()
            self._pipeline = None
            raise interrupt from None

    @contextmanager
    def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> Iterator[psycopg.Transaction]:
        """Do as psycopg does, behind what waits."""
        self._send_ahead()
        depth = self._num_transactions
        try:
            with super().transaction(savepoint_name, force_rollback) as transaction:
                yield transaction
        except BaseException as error:
            interrupt = _interrupt_behind(error)
            if interrupt is None or self._num_transactions == depth:
                raise
            self.pgconn.finish()
            self._num_transactions = depth
            raise interrupt from None

    def _send_ahead(self) -> None:
        if self._is_in_doubt or self.riders.along or self._has_riders(is_free=False):
            with self.lock:
                self.wait(self._begin_ahead_gen())

    def _begin_ahead_gen(self) -> PQGen[None]:
        """Send what waits, also what goes along with a BEGIN: psycopg would say its own without that."""
        if self._is_in_doubt:
            yield from self._settle_defaults_gen()
        if self.riders.along:
            self._begin()
        yield from self._send_ahead_gen()

    # Riding.

    def _defers(self, text: str) -> bool:
        """Take a statement that may wait."""
        if not self.riders.defer(text, self.transaction_status):
            return False
        if self._may_have_created and text.lstrip()[:8].upper() == "ROLLBACK":
            self._forget_all_prepared()
        return True

    def _may_go_without(self) -> bool:
        """Whether a harmless read may go without BEGIN."""
        riders = self.riders
        return (
            self.is_read_only_at_start
            and riders.is_untouched
            and not riders.is_doomed
            and self._isolation_level in (None, psycopg.IsolationLevel.READ_COMMITTED)
        )

    def _is_free(self, query: bytes, is_harmless: bool) -> bool:
        """Whether a statement goes without BEGIN.

        :param is_harmless: whether the caller has said that it is a harmless read.
        """
        self._leaves_default = self._autocommit and (is_harmless or query in PINGS)
        return is_harmless and self._may_go_without()

    def _note_text(self, text: Text, query: object) -> None:
        """Keep in mind what a statement is about to do."""
        if text.may_create:
            self._may_have_created = True
        if text.is_control:
            self.riders.forget_savepoints(query if isinstance(query, str) else "")
        if text.unprepares:
            self._forget_all_prepared()
        # A text that resets all leaves the start option as it is where that holds.
        if text.sets_defaults or (text.resets_all and not self.is_read_only_at_start):
            # A ROLLBACK may undo what it does.
            self._is_in_doubt = self._was_read_only_at_start
            self.is_read_only_at_start = False
        elif text.resets_all:
            self._is_read_only_by_default = True

    def _has_wrong_default(self) -> bool:
        """Whether transactions would be read-only where nobody says BEGIN, or the reverse."""
        if not self.is_read_only_at_start or self._leaves_default or self.pgconn.transaction_status != IDLE:
            return False
        told = self.pgconn.parameter_status(READ_ONLY)
        return self._autocommit == (self._is_read_only_by_default if told is None else told == b"on")

    def _has_riders(self, is_free: bool) -> bool:
        """Whether anything has to go before the next statement.

        :param is_free: whether the statement goes without BEGIN.
        """
        return bool(
            (self.riders.waiting and not is_free)
            or self._forgotten
            or (self.is_read_only_at_start and self._has_wrong_default())
        )

    def _note_error(self, error: psycopg.Error, *, was_free: bool, was_prepared: bool) -> bool:
        """Keep in mind what a server's refusal of a statement means.

        :return: whether the statement is to be sent again: its plan was stale, and it was a read that went alone.
        """
        has_lost_plan = was_prepared and error.sqlstate in LOST_PLAN_STATES
        if has_lost_plan:
            self._forget_all_prepared()
        elif was_free and error.sqlstate is not None:
            self.riders.is_doomed = True
        return has_lost_plan and was_free

    def _encode(self, riders: list[str]) -> list[bytes]:
        return [rider.encode() if rider.isascii() else rider.encode(self.pgconn._encoding) for rider in riders]

    def _take_forgotten(self) -> list[bytes | None]:
        if not self._forgotten or (self.pgconn.transaction_status == IN_ERROR and not self.riders.waiting):
            return []
        forgotten, self._forgotten = self._forgotten, []
        return forgotten

    def _send_ahead_gen(self) -> PQGen[None]:
        """Send what waits in a flush of its own."""
        if self._is_in_doubt:
            yield from self._settle_defaults_gen()
        riders = self.riders
        if riders.is_doomed:
            yield from self._fail_gen()
        elif riders.waiting or self._forgotten or self._has_wrong_default():
            yield from self._ride_gen(self._encode(self.riders.waiting), ())

    def _send_before_gen(self, query: object) -> PQGen[None]:
        """Send what waits ahead of a statement that cannot carry it."""
        way_back = self.riders.way_back(query) if isinstance(query, str) else ""
        try:
            yield from self._send_ahead_gen()
        except errors.Error:
            if way_back and self.pgconn.transaction_status == IN_ERROR:
                self.riders.go_back(way_back)
            raise

    def _fail_gen(self) -> PQGen[None]:
        """Make a failure genuine that the server knows nothing of."""
        riders = self._encode(self.riders.waiting)
        yield from self._ride_gen(riders, [partial(queue_query, self.pgconn, FAILING.encode())])

    def _ride_gen(
        self, riders: Sequence[bytes], sends: Sequence[Callable[[], object]]
    ) -> Generator[Any, Any, list[list[PGresult]]]:
        """Send riders and what they ride on in one flush.

        :param riders: the riders; they are those that wait, or none of these.
        :param sends: functions that hand one command each to libpq.
        :raises psycopg.Error: if a rider was refused; what a command's results say is the caller's to see.
        """
        pgconn = self.pgconn
        is_read = False
        refusal: Exception | None = None
        try:
            pgconn.enter_pipeline_mode()
            leading = self._send_default() if self.is_read_only_at_start else 0
            for rider in riders:
                queue_query(pgconn, rider)
            forgotten = self._take_forgotten() if self._forgotten else ()
            for name in forgotten:
                self._send_deallocate(name)
            sent = count = leading + len(riders) + len(forgotten)
            try:
                for send_command in sends:
                    send_command()
                    count += 1
            except Exception as error:  # noqa: BLE001  # it is raised when the riders' results are read
                refusal = error
            sync(pgconn)
            self.trips += 2 if leading else 1
            answers = yield from self._read_gen(count)
            if riders:
                self.riders.sent()
            is_read = True
        finally:
            if not is_read:
                pgconn.finish()
        self._check_riders(answers[:sent])
        if refusal is not None:
            raise refusal
        return answers[sent:]

    def _send_default(self) -> int:
        """Set what transactions without BEGIN are, in a transaction of its own; return how many answers that makes."""
        if not self._has_wrong_default():
            return 0
        self._send_set_default()
        self.pgconn.pipeline_sync()
        return 2

    def _send_set_default(self) -> None:
        # The default is the start option: what it says is then no setting of the application's.
        wanted = b"off" if self._autocommit else b"DEFAULT"
        queue_query(self.pgconn, b"SET " + READ_ONLY + b" TO " + wanted)
        self._is_read_only_by_default = not self._autocommit

    def _read_gen(self, count: int) -> Generator[Any, Any, list[list[PGresult]]]:
        pgconn = self.pgconn
        answers: list[list[PGresult]] = []
        try:
            yield from send(pgconn)
            for _ in range(count):
                answer = yield from fetch_many(pgconn)
                answers.append(answer)
            ending = yield from fetch_many(pgconn)
            if ending[0].status == FATAL_ERROR:  # of what has no BEGIN, the COMMIT: a deferred constraint says no
                answers[-1] += ending
                yield from fetch_many(pgconn)
            hand_on_notifications(pgconn)
        except errors.DatabaseError:
            # A server that ends the connection says why before.
            self._check_riders(answers)
            raise
        pgconn.exit_pipeline_mode()
        return answers

    def _check_riders(self, answers: list[list[PGresult]]) -> None:
        for results in answers:
            if results[0].status == FATAL_ERROR:
                # Those behind it were not made.
                self.riders.forget_savepoints()
                self._check_answer(results)

    def _check_answer(self, results: list[PGresult]) -> None:
        for result in results:
            if result.status == FATAL_ERROR:
                raise errors.error_from_result(result, encoding=self.pgconn._encoding)

    def _forget_all_prepared(self) -> None:
        self._prepared.clear()
        for _ in self._prepared.maintain_gen(self):
            pass


class _RidingInfo(psycopg.ConnectionInfo):
    """psycopg's information about a connection on which statements wait."""

    def __init__(self, connection: RidingConnection) -> None:
        super().__init__(connection.pgconn)
        self._connection = connection

    @property
    def transaction_status(self) -> pq.TransactionStatus:
        return pq.TransactionStatus(self._connection.transaction_status)


class _CountedPipeline(Pipeline):
    """psycopg's pipeline: each Sync is a round trip."""

    def _enqueue_sync(self) -> None:
        connection = self._conn
        if isinstance(connection, RidingConnection):
            connection.trips += 1
        super()._enqueue_sync()


def connect(arguments: Sequence[Any], options: dict[str, Any]) -> RidingConnection:
    """Connect.

    :param arguments: as psycopg takes them.
    :param options: as psycopg takes them.
    """
    connection = RidingConnection.connect(*arguments, **options)
    connection.cursor_factory = riding_cursor_class(connection.cursor_factory)
    return connection


def _interrupt_behind(error: BaseException) -> BaseException | None:
    """The interrupt that an error is, or of whose handling psycopg has made an error."""
    behind: BaseException | None = error
    while isinstance(behind, Exception):
        behind = behind.__context__
    return behind


@lru_cache(1)
def can_ride() -> bool:
    """Whether the installed psycopg has what riding rests on; the first answer says in the log what it lacks."""
    wanted = (
        (psycopg.Cursor, CURSOR_METHODS),
        (psycopg.Connection, CONNECTION_METHODS),
        (PrepareManager, PREPARED_METHODS),
    )
    missing = [f"{owner.__name__}.{name}" for owner, names in wanted for name in names if not hasattr(owner, name)]
    if not Pipeline.is_supported():
        missing.append("libpq's pipeline mode")
    if getattr(psycopg, "capabilities", None) is None:  # which came with it, in 3.2
        missing.append("waiting.wait(interval)")
    if missing:
        logger.warning(
            "Statements do not ride: psycopg %s lacks %s. fix: Install psycopg 3.2 or a newer one.",
            psycopg.__version__,
            ", ".join(missing),
        )
    return not missing
