"""What a statement's text says about the transaction."""

import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import make_url

from flask_uow._statements import Kind, kind_of

READ, WRITE, COMMIT, ROLLBACK, BEGIN = Kind.READ, Kind.WRITE, Kind.COMMIT, Kind.ROLLBACK, Kind.BEGIN
LEAVE = Kind.LEAVE_TO_WRITE

LENGTH = 200_000
# Of the processor. Such a text takes a tenth of a second; one that is tried in every way takes hours.
DEADLINE_S = 10.0

TABLE = sa.table("t", sa.column("x"))
POSTGRESQL = make_url("postgresql://").get_dialect()()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT 1", READ),
        ("select 1", READ),
        ("VALUES (1), (2)", READ),
        ("TABLE t", READ),
        ("SHOW search_path", READ),
        ("SET LOCAL statement_timeout = 5", READ),
        ("PRAGMA foreign_keys", READ),
        ("SELECT x FROM t FOR UPDATE", READ),
        ("SELECT updated, deleted FROM t", READ),
        ("LOCK TABLE t", READ),
        ("", READ),
        ("   \n\t", READ),
        ("-- nothing but a comment", READ),
        ("/* COMMIT */", READ),
        ("???", READ),
    ],
)
def test_reading_statements(text: str, expected: Kind) -> None:
    """What changes no row and ends nothing is a read, an empty text too."""
    assert kind_of(text, None) is expected


@pytest.mark.parametrize(
    "text",
    [
        "INSERT INTO t VALUES (1)",
        "insert into t values (1)",
        "INSERT OR IGNORE INTO t VALUES (1)",
        "REPLACE INTO t VALUES (1)",
        "UPDATE t SET x = 1",
        "DELETE FROM t",
        "MERGE INTO t USING s ON true WHEN MATCHED THEN DELETE",
        "TRUNCATE t",
        "COPY t FROM STDIN",
        "CREATE TABLE t (x int)",
        "ALTER TABLE t ADD y int",
        "DROP TABLE t",
        "COMMENT ON TABLE t IS 'COMMIT'",
        "GRANT SELECT ON t TO bob",
        "REVOKE SELECT ON t FROM bob",
        "REFRESH MATERIALIZED VIEW v",
        "REINDEX TABLE t",
        "CALL pay(1)",
        "DO $$ BEGIN PERFORM 1; COMMIT; END $$",
    ],
)
def test_writing_statements(text: str) -> None:
    """What changes rows, tables or rights is a write, and so is what may."""
    assert kind_of(text, None) is WRITE


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("COMMIT", COMMIT),
        ("commit work", COMMIT),
        ("COMMIT AND CHAIN", COMMIT),
        ("COMMIT PREPARED 'a'", COMMIT),
        ("END", COMMIT),
        ("END TRANSACTION", COMMIT),
        ("PREPARE TRANSACTION 'a'", COMMIT),
        ("PREPARE q AS SELECT 1", READ),
        ("ROLLBACK", ROLLBACK),
        ("ROLLBACK WORK", ROLLBACK),
        ("ABORT", ROLLBACK),
        ("ROLLBACK TO a", READ),
        ("ROLLBACK TO SAVEPOINT a", READ),
        ("ROLLBACK WORK TO SAVEPOINT a", READ),
        ("ROLLBACK TRANSACTION TO a", READ),
        ("rollback /* halfway */ to savepoint a", READ),
        ("SAVEPOINT a", READ),
        ("RELEASE SAVEPOINT a", READ),
        ("BEGIN", BEGIN),
        ("BEGIN IMMEDIATE", BEGIN),
        ("BEGIN ISOLATION LEVEL SERIALIZABLE", BEGIN),
        ("START TRANSACTION READ ONLY", BEGIN),
        ("start -- slowly\n transaction", BEGIN),
        ("START REPLICATION", READ),
    ],
)
def test_statements_that_take_the_transaction_over(text: str, expected: Kind) -> None:
    """Only what ends or begins a transaction is told apart; a savepoint may come and go."""
    assert kind_of(text, None) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SET TRANSACTION READ WRITE", LEAVE),
        ("set local transaction isolation level serializable, read /**/ write", LEAVE),
        ("SET SESSION TRANSACTION READ WRITE, DEFERRABLE", LEAVE),
        ("SET transaction_read_only = off", LEAVE),
        ("SET LOCAL transaction_read_only TO 'off'", LEAVE),
        ("SET transaction_read_only TO DEFAULT", LEAVE),
        ("RESET transaction_read_only", LEAVE),
        ("SELECT 1; SET TRANSACTION READ WRITE", LEAVE),
        ("SET TRANSACTION READ WRITE; DELETE FROM t", WRITE),
        ("SET TRANSACTION READ ONLY", READ),
        ("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", READ),
        ("SET transaction_read_only = on", READ),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE", READ),
        ("SET default_transaction_read_only = off", READ),
        ("SET LOCAL", READ),
        ("SET", READ),
    ],
)
def test_statements_that_give_the_leave_to_write(text: str, expected: Kind) -> None:
    """To the present transaction; what later ones may is their own affair."""
    assert kind_of(text, None) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  \n COMMIT ;", COMMIT),
        (";;COMMIT", COMMIT),
        ("-- a comment\nCOMMIT", COMMIT),
        ("-- COMMIT\nSELECT 1", READ),
        ("--COMMIT", READ),
        ("/* one */ /* two */ COMMIT", COMMIT),
        ("/* ROLLBACK; */ COMMIT", COMMIT),
        ("/**/COMMIT/**/", COMMIT),
        ("/* COMMIT; */ SELECT 1", READ),
        ("/* not closed; COMMIT", READ),
        ("((SELECT 1) UNION (SELECT 2))", READ),
        ("(SELECT 1) ; COMMIT", COMMIT),
        ("( /* one */ (( DELETE FROM t", WRITE),
        ("--\n;/**/;( INSERT INTO t VALUES (1)", WRITE),
    ],
)
def test_what_stands_before_the_first_word_is_passed_over(text: str, expected: Kind) -> None:
    """Blanks, comments, parentheses and semicolons hide no statement."""
    assert kind_of(text, None) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT 1; SELECT 2", READ),
        ("SELECT 1; UPDATE t SET x = 1", WRITE),
        ("UPDATE t SET x = 1; COMMIT", COMMIT),
        ("COMMIT; SELECT 1", COMMIT),
        ("INSERT INTO t VALUES (1); ROLLBACK", ROLLBACK),
        ("SELECT 1; BEGIN; SELECT 2", BEGIN),
        ("ROLLBACK; COMMIT", COMMIT),
        ("BEGIN; ROLLBACK", ROLLBACK),
        ("BEGIN; INSERT INTO t VALUES (1); END", COMMIT),
        ("INSERT INTO t VALUES (1); ROLLBACK TO a", WRITE),
        ("SELECT 1;\n-- then\nCOMMIT", COMMIT),
        ("CREATE TABLE t (x int); COMMIT", COMMIT),
        ('CREATE TABLE t ("begin" int, "end" int); COMMIT', COMMIT),
        ("CREATE TABLE t (begin int); COMMIT", COMMIT),
        ("SELECT * INTO copy FROM t", WRITE),
        ("SELECT 'into' FROM t", READ),
        ("NOTIFY channel", WRITE),
        ("CREATE TEMP TABLE t (function int, begin int); COMMIT", COMMIT),
        ("CREATE OR REPLACE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END; COMMIT", COMMIT),
        ("DO $$ BEGIN PERFORM 1; END $$; COMMIT", COMMIT),
        ("ALTER TABLE t ADD y int; ROLLBACK", ROLLBACK),
    ],
)
def test_several_statements_count_as_the_gravest(text: str, expected: Kind) -> None:
    """What one of them does to the transaction, all of them do."""
    assert kind_of(text, None) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT '; COMMIT'", READ),
        ("SELECT '; COMMIT; '; SELECT 2", READ),
        ("SELECT 'it''s; COMMIT;'; SELECT 2", READ),
        ("SELECT 'a;'; COMMIT", COMMIT),
        ("SELECT E'\\'; COMMIT; '; SELECT 2", READ),
        ("SELECT e'\\'; COMMIT; '; SELECT 2", READ),
        ("SELECT e'\\\\'; COMMIT", COMMIT),
        ("SELECT e'not closed\\'; COMMIT", READ),
        ('SELECT "a; COMMIT; b" FROM t; SELECT 2', READ),
        ('SELECT "a""; COMMIT; b" FROM t; SELECT 2', READ),
        ('SELECT "a" ; COMMIT', COMMIT),
        ("SELECT $$; COMMIT; $$; SELECT 2", READ),
        ("SELECT $a$; COMMIT; $$; $b$; $a$; SELECT 2", READ),
        ("SELECT $a$ $a$; COMMIT", COMMIT),
        ("SELECT $1; COMMIT; SELECT $1", COMMIT),
        ("SELECT a$b$; COMMIT; SELECT c$b$", COMMIT),
        ("SELECT 1 -- ; COMMIT;\n; SELECT 2", READ),
        ("SELECT 1 -- it's\n; COMMIT", COMMIT),
        ("SELECT 1 /* ; COMMIT; */ ; SELECT 2", READ),
        ("SELECT 1 /* it's */ ; COMMIT", COMMIT),
        ("SELECT '--'; COMMIT", COMMIT),
        ("SELECT '/*'; COMMIT; SELECT '*/'", COMMIT),
        ("SELECT 'not closed; COMMIT;", READ),
        ("SELECT %(name)s; COMMIT", COMMIT),
        ("SELECT :name; COMMIT", COMMIT),
    ],
)
def test_what_is_quoted_is_no_statement(text: str, expected: Kind) -> None:
    """Strings, quoted names, dollar quotes and comments are passed over as a whole, and end where they end."""
    assert kind_of(text, None) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CREATE TRIGGER a AFTER INSERT ON t BEGIN UPDATE s SET x = 1; DELETE FROM r; END", WRITE),
        ("CREATE TRIGGER a AFTER INSERT ON t BEGIN UPDATE s SET x = 1; END; COMMIT", COMMIT),
        ("DROP TRIGGER a; CREATE TEMP TRIGGER IF NOT EXISTS a AFTER INSERT ON t BEGIN SELECT 1; END;", WRITE),
        (
            "CREATE TRIGGER a AFTER INSERT ON t BEGIN UPDATE s SET x = CASE WHEN y THEN 1 END; SELECT 1; END; TABLE t",
            WRITE,
        ),
        ("CREATE TRIGGER a AFTER UPDATE OF end ON t BEGIN SELECT 1; END", WRITE),
        ("DROP FUNCTION begin(int); COMMIT", COMMIT),
        ("CREATE FUNCTION f() RETURNS int BEGIN ATOMIC INSERT INTO t VALUES (1); SELECT 2; END; SELECT 1", WRITE),
        ("CREATE OR REPLACE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END", WRITE),
        ("CREATE FUNCTION f() RETURNS int AS $$ BEGIN RETURN 1; END; $$ LANGUAGE plpgsql; SELECT f()", WRITE),
        ("CREATE FUNCTION f() RETURNS int AS 'BEGIN COMMIT; RETURN 1; END;' LANGUAGE plpgsql", WRITE),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE sql RETURN 1; ROLLBACK", ROLLBACK),
        ("CREATE PROCEDURE p() LANGUAGE sql BEGIN ATOMIC DELETE FROM t; END; ROLLBACK", ROLLBACK),
    ],
)
def test_routines_keep_their_bodies(text: str, expected: Kind) -> None:
    """BEGIN and END in the body of a trigger or function end no transaction; what comes after it may."""
    assert kind_of(text, None) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("WITH a AS (SELECT 1) SELECT * FROM a", READ),
        ("WITH a AS (DELETE FROM t RETURNING x) SELECT * FROM a", WRITE),
        ("WITH a AS (UPDATE t SET x = 1 RETURNING x) SELECT * FROM a", WRITE),
        ("WITH a AS (INSERT INTO t VALUES (1) RETURNING x) SELECT * FROM a", WRITE),
        ("with a as (select 1) insert into t select * from a", WRITE),
        ("WITH a AS (SELECT 1) INSERT OR IGNORE INTO t SELECT * FROM a", WRITE),
        ("WITH a AS (SELECT 1) REPLACE INTO t SELECT * FROM a", WRITE),
        ("WITH a AS (SELECT 1) DELETE /* all */ FROM t", WRITE),
        ("WITH a AS (SELECT 1) MERGE INTO t USING a ON true WHEN MATCHED THEN DO NOTHING", WRITE),
        ("WITH a AS (SELECT x FROM t FOR UPDATE SKIP LOCKED) UPDATE t SET x = 1", WRITE),
        ("WITH a AS (SELECT x FROM t FOR UPDATE) SELECT * FROM a", READ),
        ("WITH a AS (SELECT 1) SELECT * FROM t FOR NO KEY UPDATE", READ),
        ("WITH a AS (SELECT 'DELETE FROM t') SELECT * FROM a", READ),
        ('WITH a AS (SELECT 1 AS "UPDATE") SELECT * FROM a', READ),
        ("WITH a AS (SELECT 1 /* INSERT INTO t */) SELECT replace(x, 'a', 'b') FROM t", READ),
        ("SELECT 1; WITH a AS (DELETE FROM t RETURNING x) SELECT * FROM a", WRITE),
        ("EXPLAIN DELETE FROM t", READ),
        ("EXPLAIN ANALYZE DELETE FROM t", WRITE),
        ("EXPLAIN ANALYSE VERBOSE UPDATE t SET x = 1", WRITE),
        ("EXPLAIN (ANALYZE, BUFFERS) INSERT INTO t VALUES (1)", WRITE),
        ("EXPLAIN (VERBOSE, ANALYZE) WITH a AS (DELETE FROM t RETURNING x) SELECT * FROM a", WRITE),
        ("EXPLAIN ANALYZE SELECT x FROM t", READ),
        ("EXPLAIN QUERY PLAN DELETE FROM t", READ),
    ],
)
def test_deed_may_come_late(text: str, expected: Kind) -> None:
    """Behind WITH and EXPLAIN ANALYZE the statement proper decides."""
    assert kind_of(text, None) is expected


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("/**/" * (LENGTH // 4) + "1", id="comments before no word"),
        pytest.param("/*" * (LENGTH // 2) + ";", id="comments that do not end"),
        pytest.param("'" * (LENGTH - 1) + ";", id="apostrophes"),
        pytest.param("'a" * (LENGTH // 2) + ";", id="strings"),
        pytest.param("e'" + "\\'" * (LENGTH // 2) + ";", id="a string that does not end"),
        pytest.param('"' * (LENGTH - 1) + ";", id="quotation marks"),
        pytest.param("$" * LENGTH + ";", id="dollars"),
        pytest.param("".join(f"$a{number}$ " for number in range(LENGTH // 9)) + ";", id="dollar quotes of all names"),
        pytest.param("$" + "a" * LENGTH + ";", id="a long name of a dollar quote"),
        pytest.param("-" * LENGTH + ";", id="dashes"),
        pytest.param(" " * LENGTH + ";", id="blanks"),
        pytest.param("(" * LENGTH + ";", id="parentheses"),
        pytest.param("WITH " + "INSERT " * (LENGTH // 7) + ";", id="half an INSERT INTO again and again"),
        pytest.param("WITH " + "x" * LENGTH + " ;", id="a long word"),
        pytest.param("SELECT " + "x, " * (LENGTH // 3) + "1;", id="a long statement"),
        pytest.param("CREATE TRIGGER " + "BEGIN " * (LENGTH // 6) + ";", id="blocks that do not end"),
        pytest.param(";" * LENGTH, id="semicolons"),
    ],
)
def test_hostile_text_is_read_in_time(text: str) -> None:
    """A long text made to lead the reading astray is read once, not in every possible way."""
    begun = time.process_time()

    kind_of(text, None)

    assert time.process_time() - begun < DEADLINE_S


def test_long_text_is_read_to_its_end() -> None:
    """A COMMIT behind a megabyte of rows is found."""
    rows = ", ".join(["('it''s; ROLLBACK;')"] * (LENGTH // 22))

    assert kind_of(f"INSERT INTO t VALUES {rows}; COMMIT", None) is COMMIT
    assert kind_of(f"INSERT INTO t VALUES {rows};", None) is WRITE


class NotSentError(Exception):
    """Ends an execution before anything is sent."""


class TestCompiled:
    """What SQLAlchemy compiled says itself what it is."""

    @pytest.mark.parametrize(
        ("build", "expected"),
        [
            pytest.param(lambda: sa.select(TABLE.c.x), READ, id="select"),
            pytest.param(lambda: sa.insert(TABLE).values(x=1), WRITE, id="insert"),
            pytest.param(lambda: sa.update(TABLE).values(x=1), WRITE, id="update"),
            pytest.param(lambda: sa.delete(TABLE), WRITE, id="delete"),
            pytest.param(lambda: sqlite.insert(TABLE).values(x=1).on_conflict_do_nothing(), WRITE, id="upsert"),
            pytest.param(
                lambda: sa.insert(TABLE).from_select(["x"], sa.select(sa.literal(2))), WRITE, id="from select"
            ),
            pytest.param(
                lambda: sa.update(TABLE).values(x=1).add_cte(sa.select(TABLE).cte("a")), WRITE, id="update with a CTE"
            ),
            pytest.param(lambda: sa.select(sa.select(TABLE).cte("a").c.x), READ, id="select with a CTE"),
            pytest.param(lambda: sa.select(sa.literal("; COMMIT; x")), READ, id="select of a string"),
            pytest.param(lambda: sa.select(sa.literal_column("'; COMMIT;'")), READ, id="select of a literal string"),
            pytest.param(lambda: sa.text("SELECT 1"), READ, id="text"),
            pytest.param(lambda: sa.text("DELETE FROM t"), WRITE, id="text that writes"),
            pytest.param(lambda: sa.text("SELECT 1; COMMIT"), COMMIT, id="text of two statements"),
            pytest.param(lambda: sa.text("SELECT 1").columns(sa.column("x")), READ, id="text with columns"),
            pytest.param(
                lambda: sa.schema.CreateTable(sa.Table("s", sa.MetaData(), sa.Column("y", sa.Integer))), WRITE, id="DDL"
            ),
        ],
    )
    def test_kind_of_what_is_executed(self, build: Callable[[], Any], expected: Kind) -> None:
        """Constructs of the expression language are known by what they are."""
        assert self._seen(lambda connection: connection.execute(build())) == [expected]

    def test_text_without_a_construct_is_read_closely(self) -> None:
        """A text that goes to the driver as it is may hold several statements."""
        assert self._seen(lambda connection: connection.exec_driver_sql("SELECT 1; UPDATE t SET x = 1")) == [WRITE]

    def test_writing_cte_of_a_select_is_a_write(self) -> None:
        """A SELECT whose CTE deletes is a write, although SQLAlchemy calls it a SELECT."""
        deleted = sa.delete(TABLE).returning(TABLE.c.x).cte("deleted")
        compiled = sa.select(deleted).compile(dialect=POSTGRESQL)

        assert kind_of(str(compiled), self._context_of_select()) is WRITE

    def test_locking_select_with_a_cte_is_a_read(self) -> None:
        """FOR UPDATE locks rows and changes none."""
        waiting = sa.select(TABLE).cte("waiting")
        compiled = sa.select(waiting).with_for_update().compile(dialect=POSTGRESQL)

        assert "FOR UPDATE" in str(compiled)
        assert kind_of(str(compiled), self._context_of_select()) is READ

    def test_text_of_ddl_is_read_whole(self) -> None:
        """``DDL`` is compiled, and holds whatever was written into it."""
        statement = sa.DDL("SELECT 1; COMMIT")  # type: ignore[no-untyped-call]

        assert self._seen(lambda connection: connection.execute(statement)) == [COMMIT]

    @staticmethod
    def _seen(send: Callable[[sa.Connection], object]) -> list[Kind]:
        """Return the kinds of what would be sent; nothing is."""
        seen: list[Kind] = []
        with closing(sa.create_engine("sqlite://").connect()) as connection:

            @event.listens_for(connection, "before_cursor_execute")
            def note(conn: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
                seen.append(kind_of(statement, context))
                raise NotSentError("Nothing is sent.")

            with pytest.raises(NotSentError, match=r"Nothing is sent\."):
                send(connection)
        return seen

    @staticmethod
    def _context_of_select() -> Any:
        """Return the execution context of a compiled SELECT."""
        with closing(sa.create_engine("sqlite://").connect()) as connection:
            return connection.execute(sa.select(sa.literal(1))).context
