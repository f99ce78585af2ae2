"""A directive whose code runs when the page is built: ``run`` shows it, and what it prints and logs.

The code of a page shares its names. ``DATABASE_URL`` names an empty database on a PostgreSQL that lives as long as the
build, and ``look(what, entity)`` prints a line: what was done, the entity's state in SQLAlchemy's words, and the
server's sessions of the app in the words of ``pg_stat_activity``.
"""

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import psycopg2
import sqlalchemy as sa
from docutils import nodes  # type: ignore[import-untyped]
from docutils.parsers.rst import Directive  # type: ignore[import-untyped]
from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.throwaway_server import throwaway_server  # it lies beside the pages, and is not installed

STATES = ("transient", "pending", "persistent", "deleted", "detached")
SESSIONS = """
    SELECT state, regexp_replace(query, '\\s+', ' ', 'g') FROM pg_stat_activity
     WHERE datname = current_database() AND application_name <> 'onlooker' AND backend_type = 'client backend'
     ORDER BY backend_start
"""
SHOWN = 58
"""How much of a statement is shown."""


class Stage:
    """Where the code of the pages runs."""

    def __init__(self) -> None:
        self._server = contextlib.ExitStack()
        self._url = ""
        self._names: dict[str, dict[str, Any]] = {}

    def run(self, page: str, code: str) -> str:
        """Run a page's code, and return what it has printed and logged."""
        if not self._url:
            self._url = self._server.enter_context(throwaway_server())
        names = self._names.setdefault(page, {"DATABASE_URL": self._url, "look": self._look, "__name__": page})
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), _log_to(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is warned of is logged as well
            exec(compile(code, f"{page}.rst", "exec"), names)
        return printed.getvalue()

    def close(self, *about: object) -> None:
        """End the server."""
        self._server.close()
        self._url = ""

    def _look(self, what: str, entity: object = None) -> None:
        state = "" if entity is None else _state_of(entity)
        first, *others = [*self._sessions()] or ["no session"]
        print(f"{what:<26}{state:<12}{first}")  # noqa: T201  # this is what the page shows
        for other in others:
            print(f"{'':<38}{other}")  # noqa: T201

    def _sessions(self) -> Iterator[str]:
        with (
            contextlib.closing(psycopg2.connect(self._url, application_name="onlooker")) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(SESSIONS)
            for state, query in cursor.fetchall():
                yield f"{state}: {query[:SHOWN]}"


@contextlib.contextmanager
def _log_to(file: TextIO) -> Iterator[None]:
    """Let what is logged be written there, and nowhere else."""
    root, handler = logging.getLogger(), logging.StreamHandler(file)
    handler.setFormatter(logging.Formatter("log: %(message)s"))
    handlers, root.handlers = root.handlers, [handler]
    try:
        yield
    finally:
        root.handlers = handlers


def _state_of(entity: object) -> str:
    inspected: Any = sa.inspect(entity)
    return next(state for state in STATES if getattr(inspected, state))


def _directive(stage: Stage) -> type[Directive]:
    class Run(Directive):  # type: ignore[misc]
        """Code, and what it prints."""

        has_content = True

        def run(self) -> list[nodes.Node]:
            code = "\n".join(self.content)
            page = Path(self.state.document.current_source).stem
            shown: list[nodes.Node] = [nodes.literal_block(code, code, language="python")]
            printed = stage.run(page, code)
            return shown + ([nodes.literal_block(printed, printed, language="text")] if printed else [])

    return Run


def setup(app: Sphinx) -> dict[str, Callable[..., Any] | bool]:
    """Add the directive."""
    stage = Stage()
    app.add_directive("run", _directive(stage))
    app.connect("build-finished", stage.close)
    return {"parallel_read_safe": False}
