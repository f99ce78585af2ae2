"""The suite itself, found here by pytest."""

from sqlalchemy.testing.suite import *  # noqa: F403
