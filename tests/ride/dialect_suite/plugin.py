"""SQLAlchemy's pytest plugin, and one of its engine plugins by which every engine of the suite rides."""

import pytest

pytest.register_assert_rewrite("sqlalchemy.testing.assertions")

from sqlalchemy import URL, Engine  # noqa: E402
from sqlalchemy.dialects import plugins  # noqa: E402
from sqlalchemy.dialects.postgresql import provision as _  # noqa: E402, F401
from sqlalchemy.engine import CreateEnginePlugin  # noqa: E402
from sqlalchemy.testing.plugin.pytestplugin import *  # noqa: E402, F403
from sqlalchemy.testing.provision import post_configure_engine  # noqa: E402

from flask_uow._ride import ride  # noqa: E402


class RidePlugin(CreateEnginePlugin):
    """An engine whose URL says ``plugin=ride`` rides; with ``start=read-only`` its server starts read-only."""

    def update_url(self, url: URL) -> URL:
        """Take our own words out of the URL."""
        self._is_read_only = url.query.get("start") == "read-only"
        return url.difference_update_query(["start"])

    def engine_created(self, engine: Engine) -> None:
        """Let it ride."""
        ride(engine, read_only_at_start=self._is_read_only)


@post_configure_engine.for_db("postgresql")  # type: ignore[untyped-decorator]  # SQLAlchemy's testing has no types
def _make_no_extension(url: URL, engine: Engine, follower_ident: str | None) -> None:
    """Leave out the extensions that SQLAlchemy would make: a server may not have them."""


plugins.register("ride", __name__, "RidePlugin")
