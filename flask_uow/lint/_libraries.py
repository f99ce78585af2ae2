"""What the names of libraries stand for: Flask-SQLAlchemy, Flask-SQLAlchemy-Lite, SQLAlchemy, this package."""

from __future__ import annotations

from ._values import KNOWN_METHODS, REACHING_PAST, SESSIONS, External, Method, Role, Value

SESSION_CLASSES = frozenset(
    (
        "flask_sqlalchemy.session.Session",
        "sqlalchemy.ext.asyncio.AsyncSession",
        "sqlalchemy.ext.asyncio.session.AsyncSession",
        "sqlalchemy.orm.Session",
        "sqlalchemy.orm.session.Session",
        "sqlmodel.Session",
    )
)
SCOPED_CLASSES = frozenset(
    (
        "flask_sqlalchemy_session.flask_scoped_session",
        "sqlalchemy.ext.asyncio.async_scoped_session",
        "sqlalchemy.orm.scoped_session",
        "sqlalchemy.orm.scoping.scoped_session",
    )
)
FACTORY_CLASSES = frozenset(
    (
        "sqlalchemy.ext.asyncio.async_sessionmaker",
        "sqlalchemy.orm.session.sessionmaker",
        "sqlalchemy.orm.sessionmaker",
    )
)
DATABASE_CLASSES = frozenset(
    (
        "flask_appbuilder.SQLA",
        "flask_sqlalchemy.SQLAlchemy",
        "flask_sqlalchemy.extension.SQLAlchemy",
        "flask_sqlalchemy_lite.SQLAlchemy",
        "flask_uow.UnitOfWork",
    )
)
OBJECT_SESSIONS = frozenset(("sqlalchemy.orm.object_session", "sqlalchemy.orm.session.object_session"))
TRANSACTIONAL = "flask_uow.transactional"
# Calls that hand on what their first argument is.
HANDING_ON = frozenset(("contextlib.aclosing", "contextlib.closing", "contextlib.nullcontext", "functools.partial"))
# What is called a session, or commits, and is none of SQLAlchemy's.
NO_SESSIONS = (
    "aiohttp",
    "boto3",
    "botocore",
    "flask.session",
    "httpx",
    "psycopg",
    "psycopg2",
    "requests",
    "smtplib",
    "sqlite3",
    "sqlalchemy.create_engine",
    "sqlalchemy.engine",
)
UNIT_CLASSES = frozenset(("flask_uow.Unit", "flask_uow.current_unit"))


def made_by(path: str) -> Role | None:
    """What a call of a library's class or function returns; None if that is not known."""
    if path in SESSION_CLASSES:
        return Role.OWN_SESSION
    if path in SCOPED_CLASSES or path in OBJECT_SESSIONS:
        return Role.SESSION
    if path in FACTORY_CLASSES:
        return Role.FACTORY
    if path in DATABASE_CLASSES:
        return Role.DATABASE
    return Role.FOREIGN if is_foreign(path) else None


def is_foreign(path: str) -> bool:
    """Whether a library's name is known to be no session."""
    return any(path == name or path.startswith(f"{name}.") for name in NO_SESSIONS)


def external(path: str) -> Value:
    """What a library's name stands for."""
    if path == TRANSACTIONAL:
        return Role.TRANSACTIONAL
    if path == "flask_uow.current_unit":
        return Role.DATABASE
    return Role.FOREIGN if is_foreign(path) else External(path)


def member_of_role(role: Role, name: str) -> Value | None:
    """What an attribute of something stands for."""
    if role in SESSIONS and name in KNOWN_METHODS:
        return Method(name, role is Role.OWN_SESSION)
    if role is Role.TRANSACTION and name in KNOWN_METHODS:
        return Method(name)
    if role is Role.FACTORY and name == "begin":
        return Method(name, makes_session=True)
    if role is Role.DATABASE and name == "session":
        return Role.SESSION
    if role is Role.DATABASE and name == "transactional":
        return Role.TRANSACTIONAL
    makes_sessions = role in SESSIONS and name in ("registry", "session_factory", "sessionmaker")
    if makes_sessions:
        return Role.SESSION if name == "registry" else Role.FACTORY
    return None if role is Role.DATABASE else Role.FOREIGN


def returned_by(method: Method) -> Value | None:
    """What a method of a session returns."""
    if method.makes_session:
        return Role.OWN_SESSION
    return Role.TRANSACTION if method.name in REACHING_PAST else None


def annotated_with(path: str) -> Value | None:
    """What something is that is annotated with a library's class."""
    if path in UNIT_CLASSES:
        return Role.DATABASE
    if path in SESSION_CLASSES or path in SCOPED_CLASSES:
        return Role.SESSION
    return Role.FACTORY if path in FACTORY_CLASSES else made_by(path)
