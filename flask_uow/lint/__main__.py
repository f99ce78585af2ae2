"""``python -m flask_uow.lint``: the checker, without an app."""

from ._command import db_session_lint

if __name__ == "__main__":
    db_session_lint(prog_name="python -m flask_uow.lint")
