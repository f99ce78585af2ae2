"""What is known to be a unit, and what is wrong with units, views, generators and data-access modules."""

from pathlib import Path

import pytest

from flask_uow.lint import Settings, check_paths
from tests.lint.sources import HEAD, assert_as_marked, check, expected, found, write

UNITS = {
    "decorated": """
        import flask_uow
        import flask_uow as f
        from flask_uow import transactional as unit, Propagation

        @transactional
        def a(): db.session.commit()  # UOW101

        @transactional(read_only=True)
        def b(): db.session.rollback()  # UOW102

        @unit
        def c(): db.session.begin()  # UOW101

        @flask_uow.transactional
        def d(): db.session.close()  # UOW102

        @f.transactional(retries=3)
        def e(): db.session.remove()  # UOW102

        @uow.transactional
        async def g(): await db.session.commit()  # UOW101

        class Till:
            @staticmethod
            @transactional
            def h(): db.session.commit()  # UOW101
        """,
    "a name for options": """
        from functools import partial

        serializable = transactional(isolation="SERIALIZABLE")
        retried = partial(transactional, retries=3)

        @serializable
        def a(): db.session.commit()  # UOW101

        @retried()
        def b(): db.session.commit()  # UOW101
        """,
    "a decorator of the project": """
        from functools import wraps

        def atomic(function):
            @wraps(function)
            def inside(*args):
                with transactional():
                    return function(*args)
            return inside

        def retried(function):
            return transactional(retries=3)(function)

        def logged(function):
            @wraps(function)
            def inside(*args):
                return function(*args)
            return inside

        def noted(function):
            print(transactional)
            return function

        @noted
        def d(): db.session.commit()  # UOW301

        @atomic
        def a(): db.session.commit()  # UOW101

        @retried
        def b(): db.session.commit()  # UOW101

        @logged
        def c(): db.session.commit()  # UOW301
        """,
    "wrapped by a call": """
        def a(): db.session.commit()  # UOW101
        def b(): db.session.commit()  # UOW101
        def c(): db.session.commit()  # UOW301

        a = transactional(a)
        d = transactional(label="b")(b)
        """,
    "a block": """
        from contextlib import contextmanager

        @contextmanager
        def atomic():
            with transactional() as unit:
                yield unit

        def deposit():
            db.session.commit()  # UOW301
            with transactional() as unit:
                db.session.commit()  # UOW101
                s = unit.session
                s.rollback()  # UOW102
            with open("x"), uow.transactional(read_only=True):
                db.session.commit()  # UOW101
            with atomic():
                db.session.commit()  # UOW101
            db.session.commit()  # UOW301
        """,
    "a unit in an ExitStack": """
        from contextlib import ExitStack

        @app.post("/deposits")
        def deposit():
            with ExitStack() as stack:
                db.session.commit()  # UOW301
                stack.enter_context(transactional())
                db.session.add(object())
                db.session.commit()  # UOW101
            db.session.rollback()  # UOW302

        @app.post("/withdrawals")
        def withdraw():
            stack = ExitStack()
            stack.enter_context(transactional())
            db.session.add(object())
            stack.close()
        """,
    "a unit that is handed on": """
        from flask_uow import Unit, current_unit

        def deposit(unit: Unit):
            s, t = unit.session, current_unit.session
            s.commit()  # UOW301
            t.commit()  # UOW301
        """,
    "a function inside is called by whoever wants": """
        @transactional
        def deposit(unit):
            def later():
                db.session.commit()  # UOW301
            unit.after_commit(lambda: db.session.commit())  # UOW301
            unit.after_commit(later)
        """,
    "without a unit": """
        from flask_uow import Propagation

        @transactional(propagation="never")
        def a(): db.session.commit()  # UOW301

        def b():
            with transactional():
                with transactional(propagation=Propagation.NOT_SUPPORTED):
                    db.session.commit()  # UOW301
                db.session.commit()  # UOW101
        """,
    "a savepoint by hand is none of it": """
        @transactional
        def deposit():
            with db.session.begin_nested():
                db.session.flush()
        """,
}

VIEWS = {
    "that write": """
        from sqlalchemy import insert, select, text, update
        from bank.models import Account

        @app.post("/a")
        def a():  # UOW304
            db.session.add(1)

        @app.route("/b", methods=["GET", "POST"])
        def b():  # UOW304
            db.session.execute(update(Account).values(x=1))

        @app.get("/c")
        def c():  # UOW304
            Account.query.filter_by(id=1).delete()

        @app.put("/d")
        async def d():  # UOW304
            db.session.query(Account).filter(Account.id == 1).update({"x": 1})

        @app.delete("/e")
        def e():  # UOW304
            db.session.execute(text("DELETE FROM account"))

        @app.post("/f")
        def f():  # UOW304
            statement = insert(Account).values(x=1).returning(Account.id)
            db.session.scalar(statement)

        @app.delete("/g")
        def g(accounts):  # UOW304
            db.session.delete_all(accounts)

        @app.put("/h")
        def h(accounts):  # UOW304
            db.session.merge_all(accounts)
        """,
    "that do not": """
        from sqlalchemy import select, update
        from bank.models import Account

        @app.get("/a")
        def a():
            db.session.scalars(select(Account).with_for_update())
            {}.update(x=1)
            {}.delete()

        @app.post("/b")
        @transactional
        def b(): db.session.add(1)

        @app.post("/c")
        def c():
            with transactional():
                db.session.add(1)

        def no_view(): db.session.add(1)

        @cache.get("key")
        def no_route(): db.session.add(1)
        """,
    "that commit by hand are told once": """
        @app.post("/a")
        def a():
            db.session.add(1)
            db.session.commit()  # UOW301
        """,
    "of classes": """
        from flask.views import MethodView
        from flask_restful import Resource

        class Base(MethodView): ...

        class A(Base):
            def post(self):  # UOW304
                db.session.add(1)

            def helper(self):
                db.session.add(1)

        class B(Resource):
            @transactional
            def put(self): db.session.add(1)

            def delete(self):  # UOW304
                db.session.delete(1)

        class C(MethodView):
            decorators = [transactional(retries=3)]

            def post(self): db.session.add(1)

        class D:
            def post(self): db.session.add(1)
        """,
    "that are registered by a call": """
        def a():  # UOW304
            db.session.add(1)

        def b():  # UOW304
            db.session.add(1)

        def c(): db.session.add(1)

        app.add_url_rule("/a", view_func=a)
        app.add_url_rule("/b", "b", b)
        app.add_url_rule("/c", view_func=transactional(c))
        """,
}

ORDER = {
    "above what registers": """
        from celery import shared_task

        @transactional
        @app.post("/a")  # UOW306
        def a():
            db.session.add(1)
            db.session.commit()  # UOW301

        @app.get("/b")
        @transactional
        @app.post("/b")  # UOW306
        def b(): db.session.add(1)

        @transactional(retries=3)
        @app.cli.command()  # UOW306
        def c(): ...

        @transactional
        @shared_task  # UOW306
        def d(): ...
        """,
    "below it": """
        from flask_appbuilder import expose

        @app.post("/a")
        @transactional
        def a(): db.session.add(1)

        @transactional
        @expose("/b")
        def b(): db.session.add(1)

        @transactional
        @app.something("/c")
        def c(): db.session.add(1)
        """,
}

GENERATORS = {
    "decorated": """
        @transactional
        def a():  # UOW305
            yield 1

        @transactional
        async def b():  # UOW305
            yield 1

        @transactional
        def c():
            def inside():
                yield 1
            return list(inside())

        @transactional
        def d():
            return [x for x in (y for y in range(3))]

        @transactional
        @something_else
        def e():
            yield 1
        """,
    "a block around a yield": """
        import contextlib
        import pytest

        def a():
            with transactional():  # UOW305
                for row in range(3):
                    yield row

        def b():
            with transactional():
                rows = list(range(3))
            yield from rows

        @contextlib.contextmanager
        def c():
            with transactional() as unit:
                yield unit

        @pytest.fixture
        def d():
            with transactional():
                yield
        """,
}

MERGES = {
    "of what was loaded": """
        from flask import abort
        from sqlalchemy import select
        from bank.models import Account

        def deposit(number):
            a = db.session.get(Account, number)
            db.session.merge(a)  # UOW105
            b = db.session.scalars(select(Account)).one()
            db.session.merge(b)  # UOW105
            c = db.session.query(Account).filter_by(id=number).first()
            c = db.session.merge(c)  # UOW105
            d = Account.query.get_or_404(number)
            db.session.merge(d)  # UOW105
            e = db.session.execute(select(Account)).scalar_one()
            db.session.merge(e)  # UOW105
            f = db.session.get(Account, number) or abort(404)
            db.session.merge(f)  # UOW105
            for g in db.session.scalars(select(Account)).all():
                db.session.merge(g)  # UOW105
            for h in db.session.query(Account):
                db.session.merge(h)  # UOW105
            db.session.merge(db.session.get(Account, number))  # UOW105

        async def withdraw(number):
            a = await db.session.get(Account, number)
            await db.session.merge(a)  # UOW105
        """,
    "of anything else": """
        from sqlalchemy import select
        from sqlalchemy.orm import Session, make_transient
        from bank.models import Account

        def deposit(number, given, s: Session):
            db.session.merge(given)
            db.session.merge(Account())
            a = Account()
            if number:
                a = db.session.get(Account, number)
            db.session.merge(a)
            b = s.get(Account, number)
            db.session.merge(b)
            c = db.session.get(Account, number) or Account()
            db.session.merge(c)
            for d in given:
                db.session.merge(d)
            e = db.session.query(Account.id).first()
            db.session.merge(e)
            f = db.session.query(Account, Account).first()
            db.session.merge(f)
            m = db.session.merge
            m(db.session.get(Account, number))

        def let_go(number):
            a = db.session.get(Account, number)
            db.session.expunge(a)
            db.session.merge(a)
        """,
}


@pytest.mark.parametrize("source", UNITS.values(), ids=UNITS)
def test_units_are_known(tmp_path: Path, source: str) -> None:
    """What is done by hand inside a unit is one rule, outside of any it is another."""
    assert_as_marked(tmp_path, source)


@pytest.mark.parametrize("source", VIEWS.values(), ids=VIEWS)
def test_views_that_write_are_to_be_units(tmp_path: Path, source: str) -> None:
    """A view that only reads, and one whose commit is told of, are left alone."""
    assert_as_marked(tmp_path, source)


@pytest.mark.parametrize("source", ORDER.values(), ids=ORDER)
def test_transactional_stands_next_to_the_function(tmp_path: Path, source: str) -> None:
    """What registers a function below it has taken the bare one."""
    assert_as_marked(tmp_path, source)


@pytest.mark.parametrize("source", GENERATORS.values(), ids=GENERATORS)
def test_units_do_not_last_across_a_yield(tmp_path: Path, source: str) -> None:
    """But for what a ``with`` statement or a test runs to its end."""
    assert_as_marked(tmp_path, source)


@pytest.mark.parametrize("source", MERGES.values(), ids=MERGES)
def test_merges_of_what_is_loaded(tmp_path: Path, source: str) -> None:
    """An object that the same session may have let go, or not have loaded, is left alone."""
    assert_as_marked(tmp_path, source)


def test_finding_says_what_and_what_to_do(tmp_path: Path) -> None:
    """In one line, with the call as it is written and the line that is meant."""
    source = """\
    @app.post("/accounts")
    def open_account(name):
        db.session.add(Account(name))
    """

    (finding,) = check(tmp_path, source).findings

    assert finding.text == (
        "View 'open_account' writes (db.session.add(...) in line 3) and is no unit of work. "
        "Put @transactional under the route."
    )


def test_configured_units(tmp_path: Path) -> None:
    """A decorator of another library makes units if the configuration says so."""
    source = """\
    from house import atomic

    @atomic
    def a():
        db.session.commit()

    def b():
        with atomic():
            db.session.rollback()
    """

    assert found(check(tmp_path, source)) == ["5: UOW301", "9: UOW302"]
    assert found(check(tmp_path, source, units=("house.atomic",))) == ["5: UOW101", "9: UOW102"]


def test_data_access_modules_flush_and_no_more(tmp_path: Path) -> None:
    """They are named by globs; what is done inside a unit there is the unit's rule."""
    source = HEAD + (
        "def save(row):\n"
        "    db.session.add(row)\n"
        "    db.session.flush()\n"
        "    db.session.commit()  # UOW303\n"
        "    db.session.rollback()  # UOW303\n"
        "    with transactional():\n"
        "        db.session.commit()  # UOW101\n"
    )
    path = write(tmp_path, bank__daos__account=source, bank__views=source)

    report = check_paths([tmp_path], Settings(tmp_path, data_access=("bank/daos",)))

    assert found(check_paths([path], Settings(tmp_path, data_access=("*/account.py",)))) == expected(source)
    assert [each.code for each in report.findings] == ["UOW303", "UOW303", "UOW101", "UOW301", "UOW302", "UOW101"]
