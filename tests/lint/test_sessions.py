"""What is known to be a session, through every name that it may get, and what ends a transaction by hand."""

import sys
from pathlib import Path

import pytest

from flask_uow.lint import Settings, check_paths
from tests.lint.sources import assert_as_marked, check, expected, found, write

SESSIONS = {
    "by hand": """
        def deposit():
            db.session.commit()  # UOW301
            db.session.begin()  # UOW301
            db.session.prepare()  # UOW301
            db.session.rollback()  # UOW302
            db.session.close()  # UOW302
            db.session.remove()  # UOW302
            db.session.reset()  # UOW302
            db.session.invalidate()  # UOW302
            uow.session.commit()  # UOW301
            """,
    "outside a function": """
        db.session.commit()  # UOW301

        class Till:
            db.session.rollback()  # UOW302
            """,
    "in a with statement": """
        def deposit():
            with db.session.begin():  # UOW301
                pass
            with open("x") as file, db.session.begin() as transaction:  # UOW301
                pass
            """,
    "a generic class": """
        from typing import Generic, TypeVar

        T = TypeVar("T")

        class Store(Generic[T]):
            def __init__(self):
                self.rows = db.session

        class Accounts(Store[int]):
            def save(self):
                self.rows.commit()  # UOW301
            """,
    "a savepoint is no commit": """
        def deposit():
            with db.session.begin_nested() as savepoint:
                savepoint.rollback()
            with db.session.begin(nested=True):
                pass
            db.session.begin(True)
            """,
    "an alias of the session": """
        s = db.session

        def deposit():
            t = u = s
            (v := u).commit()  # UOW301
            v.commit()  # UOW301
            t.rollback()  # UOW302
            w, _ = db.session, 1
            w.commit()  # UOW301
            x: object = db.session
            x.commit()  # UOW301
            """,
    "an alias of the method": """
        c = db.session.commit

        def deposit():
            c()  # UOW301
            r = db.session.rollback
            r()  # UOW302
            if True:
                (lambda: c())()  # UOW301
            """,
    "getattr": """
        def deposit(name):
            getattr(db.session, "commit")()  # UOW301
            getattr(db, "session").rollback()  # UOW302
            finish = getattr(db.session, "commit", None)
            finish()  # UOW301
            """,
    "partial, and handed on": """
        import atexit
        from functools import partial

        def deposit(stack):
            atexit.register(db.session.commit)  # UOW301
            stack.callback(partial(db.session.rollback))  # UOW302
            p = partial(db.session.commit)
            p()  # UOW301
            stack.callback(callback=getattr(db.session, "commit"))  # UOW301
            """,
    "a condition": """
        def deposit(session=None, other=None):
            session = session or db.session
            session.commit()  # UOW301
            chosen = db.session if other is None else other
            chosen.commit()  # UOW301
            """,
    "parameters": """
        import sqlalchemy.orm as orm
        from typing import Annotated, Optional
        from sqlalchemy.ext.asyncio import AsyncSession
        from sqlalchemy.orm import Session, scoped_session

        def one(s: Session, t: "Session", u: scoped_session[Session], v: Session | None, w: Optional[orm.Session]):
            s.commit()  # UOW301
            t.commit()  # UOW301
            u.commit()  # UOW301
            v.commit()  # UOW301
            w.commit()  # UOW301

        async def two(a: AsyncSession, b: Annotated[Session, 1], *, c=db.session):
            await a.commit()  # UOW301
            b.commit()  # UOW301
            c.commit()  # UOW301
            """,
    "parameters that are something else": """
        import requests
        import sqlite3

        def deposit(session: requests.Session, db_session: "sqlite3.Connection", odd: "not a name"):
            session.commit()
            db_session.commit()
            odd.close()
        """,
    "statements of all kinds": """
        async def deposit(rows, given):
            async with db.session() as a:
                await a.commit()  # UOW301
            async for a in rows:
                match given:
                    case {"x": b} as c:
                        b.commit()
                        c.commit()
            try:
                count = 0
                count += 1
            except ValueError as d:
                d.commit()
            first, *rest = rows
            rest.commit()

        def outer():
            teller = None

            def choose():
                nonlocal teller
                teller = db.session

            choose()
            teller.commit()  # UOW301
        """,
    "a session of one's own": """
        from sqlalchemy import create_engine
        from sqlalchemy.orm import Session, sessionmaker, scoped_session

        Factory = sessionmaker(create_engine("sqlite://"))
        Registry = scoped_session(Factory)

        def deposit():
            with Factory() as s:
                s.commit()  # UOW301
            with Session() as t, t.begin():  # UOW301
                t.rollback()  # UOW302
            with Factory.begin() as u:  # UOW301
                u.commit()  # UOW301
            own = Factory()
            own.close()
            Registry.commit()  # UOW301
            Registry().commit()  # UOW301
            Registry.remove()  # UOW302
            """,
    "a factory that is set later": """
        from sqlalchemy.orm import sessionmaker

        Factory = None

        def configure(engine):
            global Factory
            Factory = sessionmaker(engine)

        def deposit():
            s = Factory()
            s.commit()  # UOW301
            """,
    "on a connection that somebody else has": """
        from sqlalchemy.orm import Session, sessionmaker

        def after_insert(mapper, connection, target):
            with Session(bind=connection) as s:
                s.commit()
            maker = sessionmaker(bind=connection)
            maker().commit()
            """,
    "attributes": """
        from sqlalchemy.orm import Session, object_session

        class Base:
            def __init__(self, session: Session):
                self.session = session

        class Till(Base):
            other = db.session

            @property
            def third(self):
                return db.session

            def deposit(self):
                self.session.commit()  # UOW301
                self.other.commit()  # UOW301
                self.third.commit()  # UOW301
                object_session(self).commit()  # UOW301

            @classmethod
            def withdraw(cls):
                cls.other.rollback()  # UOW302

            @staticmethod
            def count(self):
                self.other.rollback()

        def deposit(till: Till):
            till.session.commit()  # UOW301
            Till(db.session).other.commit()  # UOW301
            """,
    "names of a class are not seen by its methods": """
        class Till:
            session = db.session
            teller = session
            teller.commit()  # UOW301

            def deposit(self, x):
                teller.commit()

            @classmethod
            def make(cls):
                cls().commit()
                return cls().teller.rollback()  # UOW302
        """,
    "functions that return one": """
        from contextlib import contextmanager
        from typing import Iterator
        from werkzeug.local import LocalProxy
        from sqlalchemy.orm import Session

        def current():
            return db.session

        def annotated() -> Session: ...

        @contextmanager
        def lent() -> Iterator[Session]:
            yield db.session

        proxy = LocalProxy(lambda: db.session)

        def deposit():
            current().commit()  # UOW301
            annotated().commit()  # UOW301
            proxy.commit()  # UOW301
            with lent() as s:
                s.commit()  # UOW301
            """,
    "past the session": """
        def deposit():
            db.session.connection().commit()  # UOW301
            transaction = db.session.get_transaction()
            transaction.rollback()  # UOW302
            """,
    "as text": """
        from sqlalchemy import text

        def deposit():
            db.session.execute(text("COMMIT"))  # UOW301
            db.session.execute("begin immediate")  # UOW301
            statement = text("  ROLLBACK")
            db.session.execute(statement)  # UOW302
            db.session.execute(text("ROLLBACK TO SAVEPOINT a"))
            db.session.execute(text("SELECT 'COMMIT'"))
            again = text(again)
            db.session.execute(again)
            """,
    "a subclass": """
        from sqlalchemy.orm import Session

        class BankSession(Session):
            def finish(self):
                self.commit()  # UOW301

        def deposit(a: BankSession):
            a.commit()  # UOW301
            BankSession().commit()  # UOW301
            """,
    "by its name, where nothing is known": """
        def deposit(session, db_session, repository):
            session.commit()  # UOW301
            db_session.rollback()  # UOW302
            repository.session.commit()  # UOW301
            session.close()  # UOW302
            """,
    "flask's session is another": """
        import requests
        from flask import session

        def deposit():
            session.commit()
            session.close()
            with requests.Session() as http:
                http.close()
            """,
    "what only looks alike": """
        import sqlite3

        def deposit(session, door):
            session.close()
            door.close()
            connection = sqlite3.connect("x")
            connection.commit()
            """,
    "closing what one has been given by a call": """
        from library import make_session

        def deposit():
            session = make_session()
            session.add(1)
            session.close()
            """,
    "a teardown may close": """
        from celery.signals import task_postrun

        @app.teardown_appcontext
        def tidy(error):
            db.session.remove()
            db.session.commit()  # UOW301

        @task_postrun.connect
        def after_task(**_):
            db.session.remove()

        app.teardown_request(db.session.remove)
        app.after_request(db.session.remove)  # UOW302
        """,
    "who disposes of the engine may close": """
        def before_fork():
            db.session.remove()
            db.engine.dispose()
            db.session.rollback()  # UOW302
        """,
    "itself": """
        a = b
        b = a
        class C(C): pass

        def deposit(c: C):
            a.commit()
            c.session.commit()  # UOW301
            s = s or db.session
            s.commit()  # UOW301
            """,
}


@pytest.mark.parametrize("source", SESSIONS.values(), ids=SESSIONS)
def test_sessions_are_known(tmp_path: Path, source: str) -> None:
    """Each line that ends a transaction by hand is found, and no other."""
    assert_as_marked(tmp_path, source)


IMPORTS = {
    "from a package": "from bank.extensions import db",
    "relative": "from .extensions import db",
    "under another name": "from .extensions import database as db",
    "through a package": "from . import db",
    "as a module": "import bank.extensions\ndb = bank.extensions.db",
    "as a module with a name": "from . import extensions as x\ndb = x.db",
    "with a star": "from .extensions import *",
    "in the function": "def nothing(): pass",
}


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python 3.12 has these")
def test_types_are_followed_in_their_new_form(tmp_path: Path) -> None:
    """``type`` statements, and what binds the parameters of functions and classes."""
    source = """
    from sqlalchemy.orm import Session

    type Store = Session
    type Owner = int

    def save(store: Store, owner: Owner):
        store.close()  # UOW302
        owner.close()

    def keep[S: Session, T](store: S, other: T):
        store.close()  # UOW302
        other.close()

    class Till[S: Session]:
        def __init__(self, store: S):
            self.store = store

        def close(self):
            self.store.commit()  # UOW301
    """
    assert_as_marked(tmp_path, source)


@pytest.mark.parametrize("imported", IMPORTS.values(), ids=IMPORTS)
def test_names_are_followed_into_other_modules(tmp_path: Path, imported: str) -> None:
    """The session is the same whichever way it comes, though one file alone is checked and its name says nothing."""
    source = f"""\
{imported}

def deposit():
    from bank import extensions
    teller = db.accounts
    teller.commit()  # UOW301
""".replace("teller = db.accounts", "teller = extensions.teller" if "nothing" in imported else "teller = db.teller")
    extensions = """
        from sqlalchemy.orm import scoped_session, sessionmaker

        class Database:
            def __init__(self):
                self.teller = scoped_session(sessionmaker())

        db = database = Database()
        teller = db.teller
        """
    path = write(tmp_path, bank__views=source, bank__extensions=extensions)
    (tmp_path / "bank" / "__init__.py").write_text("from .extensions import db\n")

    report = check_paths([path], Settings(tmp_path))

    assert found(report) == expected(source)


def test_folders_need_no_init(tmp_path: Path) -> None:
    """A namespace package, or a folder of sources, is looked into from the configuration's folder."""
    path = write(tmp_path, app__views="from app.db import teller\nteller.commit()\n", app__db="teller = None\n")
    (tmp_path / "app" / "db.py").write_text("from sqlalchemy.orm import Session\nteller = Session()\n")

    assert found(check_paths([path], Settings(tmp_path))) == ["2: UOW301"]


def test_configured_names_are_sessions(tmp_path: Path) -> None:
    """What the source does not tell, the configuration may; but never that what is known is something else."""
    source = """\
    from library import store
    from flask import session

    def deposit():
        store.current.close()
        session.close()
    """

    assert found(check(tmp_path, source)) == []
    assert found(check(tmp_path, source, sessions=("store.current", "session"))) == ["5: UOW302"]


def test_what_is_not_resolved_is_listed(tmp_path: Path) -> None:
    """A commit on something unknown is no finding, and not forgotten either."""
    source = """\
    from flask_uow import UnitOfWork
    uow = UnitOfWork()

    def deposit(repository, name, session):
        repository.commit()
        getattr(uow.session, name)()
        session.close()
        repository.close()
    """

    report = check(tmp_path, source)

    assert report.findings == []
    assert [(each.line, each.call) for each in report.unresolved] == [
        (5, "repository.commit()"),
        (6, "getattr(uow.session, name)()"),
        (7, "session.close()"),
    ]


@pytest.mark.parametrize("is_revision", [True, False])
def test_migrations_are_alembics(tmp_path: Path, is_revision: bool) -> None:
    """Alembic has a transaction of its own around each revision, and around what stands beside its ``env.py``."""
    head = "revision = 'a'\ndown_revision = None\n" if is_revision else ""
    path = write(tmp_path, migrations__shared=f"{head}def upgrade(session):\n    session.commit()\n")
    if not is_revision:
        assert found(check_paths([path], Settings(tmp_path))) == ["2: UOW301"]
        write(tmp_path, migrations__env="", migrations__versions__one="")

    assert found(check_paths([path], Settings(tmp_path))) == []


def test_columns_count_characters(tmp_path: Path) -> None:
    """Not bytes: editors and code scanners do so."""
    report = check(tmp_path, "s = 'äöü€'; db.session.commit()\n")

    assert [(each.line, each.column) for each in report.findings] == [(1, 13)]
