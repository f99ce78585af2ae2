"""``UnitOfWork``: ties engines, sessions, units and the commands to an app; computes nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Unpack, overload

import sqlalchemy as sa
from flask import Flask

from ._checkouts import watch_pool
from ._engines import make_engines
from ._full_pool import answer_for_full_pools
from ._guard import guarded_class, watch_engine
from ._hiding import shown_value
from ._reader import Readers
from ._recording import OBSERVERS_KEY, record_requests
from ._requests import serve_whole_requests
from ._rules import RuleBook
from ._scopes import current_context
from ._server_timing import ServerTiming
from ._sessions import (
    AdoptedSessions,
    CalledSessions,
    OwnSessions,
    Sessions,
    close_scope,
    release_adopted,
)
from ._settings import DEFAULT_BIND, check_engine_options, read_settings
from ._state import STATE_KEY, AppState, state_of_app
from ._transactional import F, Options, Transactional, decorate
from .exceptions import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, scoped_session
    from sqlalchemy.orm import sessionmaker as sessionmaker_type

EXTENSION_KEY = "uow"


class UnitOfWork:
    """The extension: one session per app context, units of work on it, one command.

    .. code-block:: python

        uow = UnitOfWork()

        def create_app():
            app = Flask(__name__)
            app.config["SQLALCHEMY_DATABASE_URI"] = "postgresql://localhost/bank"
            uow.init_app(app)
            return app

    :param app: the app to serve; several can be, each by :meth:`init_app`.
    :param session: adopt sessions that another library owns: its ``scoped_session``, or a function that returns the
        current session. Units and rules work on them; engines and teardown stay with their owner.
    :param sessionmaker: a factory of your own, which may be configured later; its engines are yours.
    :param engine_options: defaults for ``create_engine``; ``SQLALCHEMY_ENGINE_OPTIONS`` wins over them.
    :param session_options: keyword arguments for the sessions, e.g. ``{"autoflush": False}``.
    :raises ConfigurationError: if the arguments contradict each other, or the app's configuration is wrong.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        session: scoped_session[Any] | Callable[[], Session] | None = None,
        sessionmaker: sessionmaker_type[Any] | None = None,
        engine_options: Mapping[str, Any] | None = None,
        session_options: Mapping[str, Any] | None = None,
    ) -> None:
        _check_arguments(session, sessionmaker, engine_options, session_options)
        self._owns_engines = session is None and sessionmaker is None
        self._owns_sessions = session is None
        self._engine_options = dict(engine_options or {})
        self.session, self.sessions = self._make_sessions(session, sessionmaker, dict(session_options or {}))
        if app is not None:
            self.init_app(app)

    def _make_sessions(
        self, session: Any, sessionmaker: Any, session_options: dict[str, Any]
    ) -> tuple[scoped_session[Session], Sessions]:
        from sqlalchemy import orm  # here, because it takes longer to import than all of this package

        if isinstance(session, orm.scoped_session):
            return session, AdoptedSessions(session)
        if session is not None:
            scoped = orm.scoped_session(orm.sessionmaker())
            called = CalledSessions(session)
            scoped.registry = called  # type: ignore[assignment]
            return scoped, called
        factory = sessionmaker or _factory(session_options)
        scoped = orm.scoped_session(factory)
        # What our own factory does when it is called, without the merging of keywords.
        own = OwnSessions(sessionmaker or (lambda: factory.class_(**factory.kw)))
        scoped.registry = own  # type: ignore[assignment]
        return scoped, own

    def init_app(self, app: Flask) -> None:
        """Serve an app: read its configuration, make its engines, take its sessions back, add the commands.

        Nothing connects, and no app context is needed.

        :raises ConfigurationError: if a key holds a wrong value, or the app has a ``UnitOfWork`` already.
        """
        if not isinstance(app, Flask):
            raise ConfigurationError(
                f"UnitOfWork cannot serve {shown_value(app)}: expected a Flask app.", fix="Pass the app itself."
            )
        if EXTENSION_KEY in app.extensions:
            raise ConfigurationError(
                f"App {app.name!r} has a UnitOfWork already; two would commit apart from each other.",
                fix="Call init_app once per app, and use SQLALCHEMY_BINDS for a second database.",
            )
        from ._cli import db_session_stats  # here, so that an import alone does not load the commands
        from .lint._command import db_session_lint

        settings = read_settings(app.config, owns_engines=self._owns_engines, engine_options=self._engine_options)
        engines = make_engines(app, settings)
        app_state = AppState(app, settings, RuleBook(settings.rule_modes), engines, self.sessions)
        if settings.readers:
            app_state.readers = Readers(app, settings, engines)
        if settings.stats:
            app_state.rules.publish = app_state.publish_violation
        app.extensions[EXTENSION_KEY] = self
        app.extensions[STATE_KEY] = app_state
        for engine in engines.values():
            watch_engine(engine)
            watch_pool(engine, app)
        self.sessions.scopes.serve(app)
        self._take_back_sessions(app)
        if settings.atomic_requests:
            serve_whole_requests(app, app_state)
        answer_for_full_pools(app, app_state)
        app.extensions.setdefault(OBSERVERS_KEY, []).append(ServerTiming(settings.server_timing))
        record_requests(app, app_state)
        app.cli.add_command(db_session_stats)
        app.cli.add_command(db_session_lint)

    def _take_back_sessions(self, app: Flask) -> None:
        """Close the context's sessions after its teardown functions, the first of which to raise stops the others."""
        tear_down = app.do_teardown_appcontext
        scopes = self.sessions.scopes

        def do_teardown_appcontext(*args: Any) -> None:
            context = current_context("The teardown")
            exception = args[-1] if args else None
            if not self._owns_sessions:
                release_adopted(scopes.of(context), exception if isinstance(exception, BaseException) else None)
            try:
                tear_down(*args)
            except BaseException as error:
                exception = error
                raise
            finally:
                close_scope(scopes, context, exception if isinstance(exception, BaseException) else None)

        app.do_teardown_appcontext = do_teardown_appcontext  # type: ignore[method-assign,assignment]

    # ---- for the current app

    @property
    def engines(self) -> dict[str, sa.Engine]:
        """The current app's engines by name: ``"default"``, those of ``SQLALCHEMY_BINDS``, and those of the readers.

        Empty where another library, or your own ``sessionmaker``, has the engines.
        """
        return dict(state_of_app(current_context("uow.engines").app, self.sessions).engines)

    @property
    def engine(self) -> sa.Engine:
        """The current app's engine for ``SQLALCHEMY_DATABASE_URI``.

        :raises ConfigurationError: where another library has the engines.
        """
        return self.get_engine(DEFAULT_BIND)

    def get_engine(self, bind: str | None = DEFAULT_BIND) -> sa.Engine:
        """One of the current app's engines.

        :param bind: ``"default"``, a name in ``SQLALCHEMY_BINDS``, or ``"reader"``, ``"reader2"`` and so on; None for
            the default, as Flask-Migrate asks.
        :raises ConfigurationError: if there is none of that name.
        """
        engines, bind = self.engines, bind or DEFAULT_BIND
        if bind not in engines:
            known = ", ".join(repr(name) for name in engines) or "none, they belong to the session's owner"
            fix = "Name it in SQLALCHEMY_BINDS." if engines else "Ask the owner of the sessions for its engines."
            raise ConfigurationError(f"There is no engine {bind!r}; the engines are: {known}.", fix=fix)
        return engines[bind]

    # ---- units of this extension

    @overload
    def transactional(self, function: F, /) -> F: ...
    @overload
    def transactional(self, **options: Unpack[Options]) -> Transactional: ...
    def transactional(self, function: Any = None, /, **options: Any) -> Any:  # type: ignore[misc]
        """:func:`flask_uow.transactional`, bound to this extension.

        :raises TypeError: when it decorates a generator function.
        :raises UnitOptionsError: if an option is not usable.
        """
        return decorate(function, options, self.sessions)


def _factory(session_options: dict[str, Any]) -> sessionmaker_type[Session]:
    """Sessions whose objects stay readable after a commit; the next transaction expires them."""
    from sqlalchemy import orm

    base = session_options.pop("class_", orm.Session)
    if not isinstance(base, type) or not issubclass(base, orm.Session):
        raise ConfigurationError(
            f"UnitOfWork(session_options={{'class_': {shown_value(base)}}}): "
            "expected a subclass of sqlalchemy.orm.Session."
        )
    if session_options.get("twophase"):
        raise ConfigurationError(
            "UnitOfWork(session_options={'twophase': True}): the session would prepare where one database is enough.",
            fix="Set app.config['UOW_TWO_PHASE'] = True.",
        )
    bind = session_options.get("bind")
    if not isinstance(bind, sa.Engine | sa.Connection | None):
        raise ConfigurationError(
            f"UnitOfWork(session_options={{'bind': {shown_value(bind)}}}): expected an engine or a connection.",
            fix="Leave it out, and name the database in SQLALCHEMY_DATABASE_URI.",
        )
    options = {"expire_on_commit": False} | session_options
    try:
        factory = orm.sessionmaker(class_=guarded_class(base), **options)
        factory().close()
    except Exception as error:  # noqa: BLE001  # SQLAlchemy meets a wrong option with whatever it stumbles over
        raise ConfigurationError(
            f"UnitOfWork(session_options={shown_value(session_options)}): {base.__qualname__} refused it ({error}).",
            fix="Pass what sqlalchemy.orm.Session takes.",
        ) from None
    return factory


def _check_arguments(session: object, sessionmaker: object, engine_options: object, session_options: object) -> None:
    if session is not None and sessionmaker is not None:
        raise ConfigurationError("UnitOfWork got both session= and sessionmaker=.", fix="Pass one of them.")
    if session is not None and not callable(session):
        raise ConfigurationError(
            f"UnitOfWork(session={shown_value(session)}): "
            "expected a scoped_session, or a function that returns a session.",
            fix="Pass db.session of Flask-SQLAlchemy, or lambda: db.session of Flask-SQLAlchemy-Lite.",
        )
    from sqlalchemy import orm

    if sessionmaker is not None and not isinstance(sessionmaker, orm.sessionmaker):
        raise ConfigurationError(
            f"UnitOfWork(sessionmaker={shown_value(sessionmaker)}): expected a sqlalchemy.orm.sessionmaker.",
            fix="Pass sessionmaker(engine), or sessionmaker() to be configured later.",
        )
    for name, value in (("engine_options", engine_options), ("session_options", session_options)):
        if value is None:
            continue
        if not isinstance(value, Mapping):
            raise ConfigurationError(
                f"UnitOfWork({name}={shown_value(value)}): expected a dict.", fix=f"Pass {name} as a dict."
            )
        if session is not None or sessionmaker is not None:
            raise ConfigurationError(
                f"UnitOfWork got {name}= for sessions that it does not make.", fix="Set them where those are made."
            )
    check_engine_options("engine_options", engine_options)
