"""The pytest plugin, in runs of its own as a project would have them."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextvars import copy_context
from pathlib import Path

import pytest
from docutils import core, nodes  # type: ignore[import-untyped]

from tests.databases import Database

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 100
PLUGIN = "flask_uow.testing.plugin"

CONFTEST = """
import os
import pytest
from flask import Flask
from flask_uow import UnitOfWork, current_unit, transactional
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

uow = UnitOfWork()

class Base(DeclarativeBase): ...

class Account(Base):
    __tablename__ = "account"
    id: Mapped[int] = mapped_column(primary_key=True)

mails = []

def create_app():
    app = Flask("bank")
    app.config.update(SQLALCHEMY_DATABASE_URI=os.environ["DATABASE_URL"], TESTING=True)
    uow.init_app(app)

    @app.post("/accounts/<int:number>")
    @transactional
    def open_account(number):
        uow.session.add(Account(id=number))
        current_unit.after_commit(lambda: mails.append(number))
        return "opened"

    @app.get("/accounts")
    @transactional(read_only=True)
    def count():
        return str(uow.session.query(Account).count())

    @app.post("/mistake")
    def mistake():
        uow.session.add(Account(id=4711))
        return "lost"

    with app.app_context(), transactional():
        Base.metadata.create_all(uow.session.connection())
    return app

@pytest.fixture(scope="session")
def app():
    return create_app()

@pytest.fixture
def client(app):
    return app.test_client()
"""


@pytest.fixture
def project(pytester: pytest.Pytester, database: Database, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project with an app, on a database of each kind."""
    monkeypatch.setenv("DATABASE_URL", database.url)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeconftest(CONFTEST)
    return pytester


@pytest.fixture
def run(project: pytest.Pytester) -> Callable[..., pytest.RunResult]:
    """A function that runs the project's tests."""

    def run_tests(tests: str, *options: str) -> pytest.RunResult:
        project.makepyfile(tests)
        options = ("-p", PLUGIN, "-p", "no:cacheprovider", *options)
        return copy_context().run(project.runpytest_inprocess, *options)  # which may leave an app context behind

    return run_tests


on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)

TWICE = """
    import pytest

    @pytest.mark.parametrize("turn", [1, 2, 3])
    def test_open(client, turn{fixture}):
        assert client.get("/accounts").text == "0"
        assert client.post("/accounts/1").status_code == 200
        assert client.get("/accounts").text == "1"
"""


def test_a_mark_isolates(run: Callable[..., pytest.RunResult], database: Database) -> None:
    """Each test finds the tables as they were, and so does who looks afterwards."""
    result = run("import pytest\npytestmark = pytest.mark.uow_isolation\n" + _dedented(TWICE.format(fixture="")))

    result.assert_outcomes(passed=3)
    assert database.rows("SELECT * FROM account") == []


@on_sqlite
def test_a_fixture_isolates(run: Callable[..., pytest.RunResult], database: Database) -> None:
    """For tests that ask for it."""
    run(TWICE.format(fixture=", uow_isolation")).assert_outcomes(passed=3)

    assert database.rows("SELECT * FROM account") == []


@on_sqlite
def test_an_option_isolates_all(run: Callable[..., pytest.RunResult], database: Database) -> None:
    """A mark takes one out again."""
    tests = TWICE.format(fixture="") + (
        "\n    @pytest.mark.uow_isolation(on=False)\n    def test_for_real(client):\n        client.post('/accounts/2')"
        "\n\n    def test_without_app():\n        pass\n"
    )

    run(tests, "-o", "uow_isolation=true").assert_outcomes(passed=5)

    assert database.rows("SELECT * FROM account") == [(2,)]


@on_sqlite
def test_a_test_that_asks_for_its_app_too_late_is_told(run: Callable[..., pytest.RunResult]) -> None:
    """What it has written would be found by all others; a mark isolates it from its beginning on."""
    tests = """
        import pytest

        def test_late(request):
            request.getfixturevalue("client").post("/accounts/1")

        @pytest.mark.uow_isolation
        def test_marked(request):
            request.getfixturevalue("client").post("/accounts/2")

        @pytest.mark.uow_isolation(on=False)
        def test_for_real(request):
            assert request.getfixturevalue("client").get("/accounts").text == "1"
    """

    result = run(tests, "-o", "uow_isolation=true")

    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(["The test was not isolated: it has asked for the fixture 'app' when it had begun,*"])


@on_sqlite
def test_without_either_nothing_is_isolated(run: Callable[..., pytest.RunResult], database: Database) -> None:
    """The plugin does nothing that nobody has asked for."""
    run(TWICE.format(fixture="")).assert_outcomes(passed=1, failed=2)

    assert database.rows("SELECT * FROM account") == [(1,)]


@on_sqlite
def test_a_test_that_fails_is_undone_too(run: Callable[..., pytest.RunResult], database: Database) -> None:
    """And the next one begins clean."""
    tests = TWICE.format(fixture=", uow_isolation").replace('== "1"', '== "2"')

    run(tests).assert_outcomes(failed=3)

    assert database.rows("SELECT * FROM account") == []


@pytest.mark.parametrize("database", ["psycopg2"], indirect=True)
def test_processes_of_one_run_do_not_meet(run: Callable[..., pytest.RunResult], database: Database) -> None:
    """With pytest-xdist, on one database."""
    database.execute("CREATE TABLE account (id int PRIMARY KEY)")
    tests = """
        import pytest

        @pytest.mark.uow_isolation
        @pytest.mark.parametrize("number", range(8))
        def test_open(client, number, worker_id):
            assert client.get("/accounts").text == "0"
            assert client.post(f"/accounts/{number}{worker_id[-1]}").status_code == 200
            assert client.get("/accounts").text == "1"
    """

    run(tests, "-p", "xdist", "-n", "2").assert_outcomes(passed=8)

    assert database.rows("SELECT * FROM account") == []


@pytest.mark.parametrize("order", [(PLUGIN, "pytest_flask.plugin"), ("pytest_flask.plugin", PLUGIN)])
def test_pytest_flask_is_at_home(project: pytest.Pytester, database: Database, order: tuple[str, str]) -> None:
    """Its client keeps the last request's context, and around each test is a context of its own: no session is new."""
    project.makeconftest(CONFTEST[: CONFTEST.index("@pytest.fixture\ndef client")])
    project.makepyfile("""
        from conftest import uow, Account
        from flask import url_for
        import pytest

        @pytest.mark.parametrize("turn", [1, 2])
        def test_open(client, turn, uow_isolation, uow_trace):
            assert uow.session.query(Account).count() == 0
            assert client.post("/accounts/1").status_code == 200
            assert client.get(url_for("count")).text == "1"
            assert uow.session.query(Account).count() == 1
            uow_trace.assert_units(2)

        @pytest.mark.usefixtures("client_class", "uow_isolation")
        class TestInClass:
            def test_open(self):
                assert self.client.post("/accounts/1").status_code == 200
                assert self.client.get("/accounts").text == "1"
    """)
    plugins = [option for plugin in order for option in ("-p", plugin)]

    project.runpytest_inprocess(*plugins, "-p", "no:cacheprovider").assert_outcomes(passed=3)

    assert database.rows("SELECT * FROM account") == []


@on_sqlite
def test_what_cannot_hold_fails_the_test(run: Callable[..., pytest.RunResult]) -> None:
    """Also where the app has swallowed the error."""
    result = run("""
        import contextlib

        def test_script(app, uow_isolation):
            with app.app_context(), app.extensions["uow"].engine.connect() as connection:
                with contextlib.suppress(Exception):
                    connection.connection.cursor().executescript("SELECT 1")
    """)

    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*executescript() commits what came before it*", "*fix: *"])


@on_sqlite
@pytest.mark.leaves_open("the tests within do")
def test_a_leak_fails_the_test(run: Callable[..., pytest.RunResult], without_collector: None) -> None:
    """The line that took it is named. Neither the next test is blamed, nor what the collector gives back."""
    result = run("""
        from threading import Thread

        kept = []

        def test_leak(app):
            with app.app_context():
                kept.append(app.extensions["uow"].engine.connect())

        def test_next(app):
            pass

        def test_leak_of_a_session(app):
            def work():
                kept.append(app.app_context())
                kept[-1].push()
                app.extensions["uow"].session.connection()

            thread = Thread(target=work)
            thread.start()
            thread.join()

        def test_context_that_is_still_there(app, request):
            context = app.app_context()
            context.push()
            app.extensions["uow"].session.connection()
            kept.append(context)

        def test_detached(app):
            with app.app_context(), app.extensions["uow"].engine.connect() as connection:
                connection.detach()

        def test_dropped(app):
            with app.app_context():
                dropped = [app.extensions["uow"].engine.connect()]
            dropped.append(dropped)
    """)

    result.assert_outcomes(passed=6, errors=2)
    result.stdout.fnmatch_lines(["*A connection is still out of its pool; it was taken at *:7 in test_leak*"])
    result.stdout.fnmatch_lines(["*A session's connection is still out of its pool; it was taken at *:16 in work*"])


@on_sqlite
@pytest.mark.leaves_open("the test within does")
def test_what_an_adopted_session_has_is_no_leak_while_its_context_is_there(
    run: Callable[..., pytest.RunResult],
) -> None:
    """That context lets go of it, as of a session of ours."""
    run("""
        import os
        import pytest
        import sqlalchemy as sa
        from flask import Flask
        from flask_uow import UnitOfWork
        from sqlalchemy.orm import scoped_session, sessionmaker

        kept = []

        @pytest.fixture
        def app():
            app = Flask("adopting")
            UnitOfWork(app, session=scoped_session(sessionmaker(sa.create_engine(os.environ["DATABASE_URL"]))))
            return app

        def test_context_that_is_still_there(app):
            context = app.app_context()
            context.push()
            app.extensions["uow"].session.connection()
            kept.append(context)
    """).assert_outcomes(passed=1)


@on_sqlite
@pytest.mark.leaves_open("the test within does")
def test_leaks_may_be_let_pass(run: Callable[..., pytest.RunResult]) -> None:
    """By an option."""
    run(
        """
        kept = []

        def test_leak(app):
            with app.app_context():
                kept.append(app.extensions["uow"].engine.connect())
        """,
        "-o",
        "uow_leak_check=false",
    ).assert_outcomes(passed=1)


@on_sqlite
@pytest.mark.leaves_open("a test within does")
def test_what_has_failed_is_not_blamed_again(run: Callable[..., pytest.RunResult]) -> None:
    """What it has left open, and that it was not isolated, is a consequence."""
    tests = """
        import pytest

        kept = []

        @pytest.mark.uow_isolation(on=False)
        def test_leak(app):
            with app.app_context():
                kept.append(app.extensions["uow"].engine.connect())
            raise LookupError("as told")

        def test_late(request):
            request.getfixturevalue("client").post("/accounts/1")
            raise LookupError("as told")
    """

    result = run(tests, "-o", "uow_isolation=true")

    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["E * LookupError: as told"] * 2)


VIOLATION = """
    import pytest

    def test_mistake(client):
        client.post("/mistake")

    @pytest.mark.uow_violations("UOW103")
    def test_on_purpose(client):
        client.post("/mistake")

    @pytest.mark.uow_violations("UOW101")
    def test_another(client):
        client.post("/mistake")

    def test_right(client):
        client.post("/accounts/1")
"""


@on_sqlite
def test_violations_fail_tests_by_an_option(run: Callable[..., pytest.RunResult]) -> None:
    """But for those that a test says it means."""
    result = run(VIOLATION, "-o", "uow_fail_on_violations=true", "-W", "ignore::UserWarning")

    result.assert_outcomes(passed=4, errors=2)
    result.stdout.fnmatch_lines(["[[]UOW103] Writes outside a unit of work were lost*"])


@on_sqlite
def test_violations_are_the_apps_own_affair_else(run: Callable[..., pytest.RunResult]) -> None:
    """As ``UOW_RULES`` says."""
    run(VIOLATION, "-W", "ignore::UserWarning").assert_outcomes(passed=4)


def test_a_trace_knows_units_and_statements(run: Callable[..., pytest.RunResult]) -> None:
    """In order, with what they were and which line sent them."""
    run("""
        def test_trace(client, uow_trace, uow_isolation):
            client.post("/accounts/1")
            client.get("/accounts")
            assert uow_trace.units == ["POST /accounts/<int:number>", "GET /accounts"]
            assert uow_trace.commits == uow_trace.units
            assert uow_trace.rollbacks == uow_trace.violations == []
            insert, select = uow_trace.of("statement")
            assert (insert.text.split()[0], insert.unit) == ("INSERT", "POST /accounts/<int:number>")
            assert (select.text.split()[0], select.unit) == ("SELECT", "GET /accounts")
            assert "in count" in select.where
            kinds = [each.kind for each in uow_trace.events if each.kind != "transaction"]
            assert kinds == ["unit", "statement", "commit"] * 2
            assert uow_trace.round_trips is None
            uow_trace.assert_units(2)
            uow_trace.assert_max_statements(2)
            uow_trace.assert_no_violations()
            uow_trace.clear()
            uow_trace.assert_units(0)
    """).assert_outcomes(passed=1)


@on_sqlite
def test_a_trace_lists_what_was_too_much(run: Callable[..., pytest.RunResult]) -> None:
    """Each statement with its unit and its line."""
    result = run("""
        def test_statements(client, uow_trace):
            client.get("/accounts")
            uow_trace.assert_max_statements(0)

        def test_units(client, uow_trace):
            client.get("/accounts")
            uow_trace.assert_units(2)

        def test_round_trips(client, uow_trace):
            client.get("/accounts")
            uow_trace.assert_max_round_trips(9)
    """)

    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(
        [
            "*1 statement sent, and at most 0 were expected:",
            "E *1 statement  *GET /accounts  *SELECT count(*",
            "E *at conftest.py:* in count",
        ]
    )
    result.stdout.fnmatch_lines(["*1 unit began, and not 2:", "E *1 unit  *-  *GET /accounts"])
    result.stdout.fnmatch_lines(["*Round trips are told where statements ride, and in no isolation:"])


@pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)
def test_a_trace_counts_round_trips(run: Callable[..., pytest.RunResult]) -> None:
    """Where statements ride: a read is one, a write two, more than that fails."""
    result = run("""
        def test_trips(client, uow_trace):
            client.get("/accounts")
            assert uow_trace.round_trips == 1
            client.post("/accounts/1")
            assert uow_trace.round_trips == 3
            uow_trace.assert_max_round_trips(3)
            uow_trace.clear()
            assert uow_trace.round_trips == 0

        def test_too_many(client, uow_trace):
            client.get("/accounts")
            uow_trace.assert_max_round_trips(0)
    """)

    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*1 round trip, and at most 0 were expected:"])


@on_sqlite
def test_commit_hooks_are_collected(run: Callable[..., pytest.RunResult]) -> None:
    """They wait until the test runs them; without the fixture they run as in life."""
    run("""
        from conftest import mails

        def test_collect(client, uow_commit_hooks, uow_isolation):
            client.post("/accounts/1")
            client.post("/accounts/2")
            assert (mails, len(uow_commit_hooks)) == ([], 2)
            assert uow_commit_hooks.labels == ["POST /accounts/<int:number>"] * 2
            uow_commit_hooks.run()
            assert (mails, len(uow_commit_hooks)) == ([1, 2], 0)

        def test_run(client, uow_isolation):
            mails.clear()
            client.post("/accounts/3")
            assert mails == [3]
    """).assert_outcomes(passed=2)


@on_sqlite
def test_an_app_of_something_else_is_left_alone(run: Callable[..., pytest.RunResult]) -> None:
    """A fixture of that name may be anything."""
    run("""
        import pytest

        @pytest.fixture
        def app():
            return object()

        def test_it(app):
            pass
    """).assert_outcomes(passed=1)


def test_the_pages_examples_run(run: Callable[..., pytest.RunResult]) -> None:
    """As they stand, with the app of these tests and the fixtures of the first example."""
    page = core.publish_doctree((ROOT / "docs" / "testing.rst").read_text(encoding="utf-8"))
    fixtures, *tests = [block.astext() for block in page.findall(nodes.literal_block)]
    imports = "import pytest\nfrom conftest import Base, create_app as make, transactional, uow\n"
    factory = "def create_app(config):\n    return make()\n"

    result = run("\n".join([imports, factory, fixtures, *tests]), "-o", "uow_fail_on_violations=true")

    result.assert_outcomes(passed=5)


def test_the_plugin_imports_late(tmp_path: Path) -> None:
    """Neither Flask nor SQLAlchemy is imported by a run that needs neither."""
    program = (
        f"import pytest, sys; pytest.main(['-q', '-p', '{PLUGIN}', '--co']); "
        f"print('{PLUGIN}' in sys.modules, sorted({{'flask', 'sqlalchemy', 'werkzeug'}} & set(sys.modules)))"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    env = {name: value for name, value in env.items() if not name.startswith("COV")}

    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, check=False, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=TIMEOUT_S
    )

    assert done.stdout.splitlines()[-1] == "True []", done.stdout + done.stderr


def _dedented(text: str) -> str:
    return "\n".join(line[4:] for line in text.splitlines())
