"""What the codemod leaves to a human: the source stays, and one line says where and why."""

from pathlib import Path

import pytest

from tests.codemod.sources import HEAD, after, ask, change, code, whole

# By name: the code, and the line and the reason that it is left for. ``line: text``, lines counted in the code.
LEFT: dict[str, tuple[str, str]] = {
    "a way that returns without a commit": (
        """
        @app.post("/<owner>")
        def open_account(owner):
            account = Account(owner=owner)
            db.session.add(account)
            if owner == "nobody":
                return "no", 400
            db.session.commit()
            return "opened"
        """,
        "7: open_account() is left as it is: it may end in line 6 with writes that it has not committed, and a unit",
    ),
    "a finally block that writes on the way of a return": (
        """
        @app.post("/<owner>")
        def open_account(owner):
            try:
                if owner == "nobody":
                    return "no", 400
            finally:
                db.session.add(Account(owner=owner))
            db.session.commit()
            return "opened"
        """,
        "8: open_account() is left as it is: it may end in line 5 with writes that it has not committed, and a unit",
    ),
    "the head of a loop that writes on the way to a return": (
        """
        @app.post("/<owner>")
        def rename(owner):
            account = db.session.get(Account, 1)
            for account.owner in owner.split("-"):
                if len(account.owner) == 3:
                    return "short"
            db.session.commit()
            return "renamed"
        """,
        "7: rename() is left as it is: it may end in line 6 with writes",
    ),
    "the guard of a case that writes on the way to a return": (
        """
        def is_renamed(owner):
            db.session.get(Account, 1).owner = owner
            return len(owner) == 3

        @app.post("/<owner>")
        def rename(owner):
            match owner:
                case "bob" if is_renamed(owner):
                    return "short"
            db.session.commit()
            return "renamed"
        """,
        "10: rename() is left as it is: it may end in line 9 with writes",
    ),
    "a function that writes and is handed to map": (
        """
        @app.post("/<owner>")
        def open_account(owner):
            accounts = [Account(owner=owner)]
            if owner == "nobody":
                list(map(db.session.add, accounts))
                return "no", 400
            db.session.commit()
            return "opened"
        """,
        "7: open_account() is left as it is: it may end in line 6 with writes",
    ),
    "a change of a row in g on the way to a return": (
        """
        from flask import g

        @app.post("/<owner>")
        def rename(owner):
            g.account = db.session.get(Account, 1)
            g.account.owner = owner
            if owner == "nobody":
                return "no", 400
            db.session.commit()
            return "renamed"
        """,
        "9: rename() is left as it is: it may end in line 8 with writes",
    ),
    "a change of a row on the way to a return": (
        """
        @app.post("/<owner>")
        def rename(owner):
            account = db.session.get(Account, 1)
            account.owner = owner
            if request.args.get("save"):
                db.session.commit()
            return "renamed"
        """,
        "6: rename() is left as it is: it may end in line 7 with writes",
    ),
    "a helper that changes a row on the way to a return": (
        """
        def set_owner(account, owner):
            account.owner = owner

        @app.post("/<owner>")
        def rename(owner):
            account = db.session.get(Account, 1)
            set_owner(account, owner)
            if not account.balance:
                return "poor"
            db.session.commit()
            return "renamed"
        """,
        "10: rename() is left as it is: it may end in line 9 with writes",
    ),
    "a commit in a loop of what was written before it": (
        """
        @app.post("/<owners>")
        def open_accounts(owners):
            db.session.add(Account(owner=owners))
            for _ in owners:
                db.session.commit()
            return "opened"
        """,
        "5: open_accounts() is left as it is: the commit stands in a loop.",
    ),
    "a commit under a lock": (
        """
        from threading import Lock
        lock = Lock()

        @app.post("/<owner>")
        def open_account(owner):
            db.session.add(Account(owner=owner))
            with lock:
                db.session.commit()
            return "opened"
        """,
        "8: open_account() is left as it is: the commit stands in the with block of line 7.",
    ),
    "others are told after the commit": (
        """
        import requests

        @app.post("/<owner>")
        def open_account(owner):
            db.session.add(Account(owner=owner))
            if owner != "nobody":
                db.session.commit()
                requests.post("https://example.org", json={"owner": owner})
                return "opened"
            abort(400)
        """,
        "7: open_account() is left as it is: line 8 may tell others, who would hear of it before the commit: req",
    ),
    "a task is sent after the commit": (
        """
        @app.post("/<owner>")
        def open_account(owner):
            db.session.add(Account(owner=owner))
            if owner != "nobody":
                db.session.commit()
                welcome.delay(owner)
                return "opened"
            abort(400)
        """,
        "5: open_account() is left as it is: line 6 may tell others",
    ),
    "an abort after the commit": (
        """
        @app.post("/<owner>")
        def open_account(owner):
            db.session.add(Account(owner=owner))
            if owner != "nobody":
                db.session.commit()
            abort(402)
        """,
        "5: open_account() is left as it is: line 6 may raise after the commit, and a unit would roll back.",
    ),
    "an error that is raised after the commit": (
        """
        @app.post("/<owner>")
        def open_account(owner):
            db.session.add(Account(owner=owner))
            if owner != "nobody":
                db.session.commit()
            raise RuntimeError(owner)
        """,
        "5: open_account() is left as it is: line 6 raises after the commit, and a unit would roll back.",
    ),
    "what is asserted after the commit": (
        """
        @app.post("/<owner>")
        def open_account(owner):
            db.session.add(Account(owner=owner))
            if owner != "nobody":
                db.session.commit()
            assert owner == "bob"
            return "", 201
        """,
        "5: open_account() is left as it is: line 6 may raise after the commit, and a unit would roll back.",
    ),
    "one commit after the other": (
        """
        @app.post("/<owner>")
        def open_account(owner):
            db.session.add(Account(owner=owner))
            if owner != "nobody":
                db.session.commit()
            if owner != "somebody":
                db.session.commit()
            return "opened"
        """,
        "5: open_account() is left as it is: it may commit more than once.",
    ),
    "what is caught outside, and goes on": (
        """
        @app.post("/<owner>")
        def open_account(owner):
            try:
                for name in owner:
                    db.session.add(Account(owner=name))
                    db.session.commit()
            except IntegrityError:
                pass
            return "opened"
        """,
        "6: open_account() is left as it is: the commit stands in a loop.",
    ),
    "what is swallowed on the way to the commit": (
        """
        from contextlib import suppress

        @app.post("/<owner>")
        def open_account(owner):
            with suppress(IntegrityError):
                db.session.add(Account(owner=owner))
                db.session.commit()
            return "opened"
        """,
        "7: open_account() is left as it is: the commit stands in the with block of line 5.",
    ),
    "a commit that comes at last": (
        """
        @app.post("/<owner>")
        def open_account(owner):
            try:
                db.session.add(Account(owner=owner))
            finally:
                db.session.commit()
            return "opened"
        """,
        "6: open_account() is left as it is: the commit stands in the finally block of line 3.",
    ),
    "code that nobody reaches": (
        """
        @app.post("/<owner>")
        def open_account(owner):
            if owner == "nobody":
                return "no"
                flash("no")
            db.session.commit()
            return "opened"
        """,
        "6: open_account() is left as it is: line 5 is never reached.",
    ),
    "what is read after the commit may end in an error": (
        """
        @app.post("/<owner>")
        def open_account(owner):
            if owner != "nobody":
                flash("some")
            db.session.commit()
            return {"id": db.get_or_404(Account, 1).id}
        """,
        "5: open_account() is left as it is: line 6 may raise after the commit, and a unit would roll back.",
    ),
    "a helper that commits": (
        """
        def save(account):
            db.session.add(account)
            db.session.commit()
        """,
        "3: save() is left as it is: it is no view, command or task. Name it with",
    ),
    "a handler that does not roll back": (
        """
        @app.post("/<owner>")
        def open_account(owner):
            try:
                db.session.add(Account(owner=owner))
                db.session.commit()
            except IntegrityError:
                return "taken", 409
            return "opened"
        """,
        "5: open_account() is left as it is: the commit stands in the try block of line 3.",
    ),
    "a commit alone in a try": (
        """
        @app.post("/<owner>")
        def open_account(owner):
            db.session.add(Account(owner=owner))
            try:
                db.session.commit()
            except IntegrityError:
                db.session.rollback()
                return "taken", 409
            return "opened"
        """,
        "5: open_account() is left as it is: the commit stands in the try block of line 4.",
    ),
    "an early return in a try": (
        """
        @app.post("/<owner>")
        def open_account(owner):
            try:
                db.session.add(Account(owner=owner))
                if owner == "nobody":
                    return "no", 400
                db.session.commit()
            except IntegrityError:
                db.session.rollback()
                return "taken", 409
            return "opened"
        """,
        "7: open_account() is left as it is: it may end in line 6 with writes",
    ),
    "a rollback by hand": (
        """
        @app.post("/<owner>")
        def open_account(owner):
            db.session.add(Account(owner=owner))
            if owner == "nobody":
                db.session.rollback()
                return "no", 400
            db.session.commit()
            return "opened"
        """,
        "5: open_account() is left as it is: line 5 ends a transaction, or calls what does: db.session.rollback().",
    ),
    "a commit by a condition": (
        """
        @app.post("/<owner>")
        def open_account(owner):
            db.session.add(Account(owner=owner))
            return db.session.commit() or "opened"
        """,
        "4: db.session.commit() is called by hand, outside any unit of work.",
    ),
    "a coroutine function": (
        """
        @app.post("/<owner>")
        async def open_account(owner):
            db.session.add(Account(owner=owner))
            db.session.commit()
            return "opened"
        """,
        "4: open_account() is left as it is: it is a coroutine or generator function.",
    ),
    "a name that is taken": (
        """
        def transactional(function):
            return function

        @app.post("/<owner>")
        def open_account(owner):
            db.session.add(Account(owner=owner))
            db.session.commit()
            return "opened"
        """,
        "7: open_account() is left as it is: the name transactional is something else there.",
    ),
    "a unit that commits by hand": (
        """
        import flask_uow

        @app.post("/<owner>")
        @flask_uow.transactional
        def open_account(owner):
            db.session.add(Account(owner=owner))
            db.session.commit()
            return "opened"
        """,
        "7: open_account() is left as it is: it is a unit already, in which nothing else commits.",
    ),
    "a session of somebody's own, and one that nobody knows": (
        """
        @app.post("/<owner>")
        def open_account(owner, session=None):
            session.add(Account(owner=owner))
            session.commit()
            return "opened"
        """,
        "4: session.commit() is called by hand, outside any unit of work.",
    ),
    "a view that writes and never commits": (
        """
        @app.post("/<owner>")
        def open_account(owner):
            db.session.add(Account(owner=owner))
            return "opened"
        """,
        "2: View 'open_account' writes (db.session.add(...) in line 3) and is no unit of work.",
    ),
}

LINES_OF_HEAD = HEAD.count("\n")


@pytest.mark.parametrize(("source", "expected"), LEFT.values(), ids=LEFT)
def test_left_with_its_reason(tmp_path: Path, source: str, expected: str) -> None:
    """The function is as it was."""
    changed, report = after(tmp_path, whole(source))

    assert code(changed) == code(whole(source))
    (left,) = report.left
    text = f"{left.line - LINES_OF_HEAD}: {left.why}"
    assert _counted_in_the_code(text).startswith(expected)
    assert str(left).startswith(f"{(tmp_path / 'bank.py').as_posix()}:{left.line}:")


def _counted_in_the_code(text: str) -> str:
    words = text.split("line ")
    numbers = [word.partition(" ")[0].rstrip(".:,)") for word in words[1:]]
    shifted = [
        str(int(number) - LINES_OF_HEAD) + word[len(number) :] for number, word in zip(numbers, words[1:], strict=True)
    ]
    return "line ".join([words[0], *shifted])


def test_view_that_calls_what_commits_is_left(tmp_path: Path) -> None:
    """A commit by hand inside the unit would be an error: both stay, until the helper is named."""
    source = """
        def save(account):
            db.session.add(account)
            db.session.commit()

        @app.post("/<owner>")
        def open_account(owner):
            account = db.session.get(Account, 1)
            account.balance += 1
            if owner != "nobody":
                save(Account(owner=owner))
                db.session.commit()
            return "opened"
        """
    changed, report = after(tmp_path, whole(source))
    assert code(changed) == code(whole(source))
    assert len(report.left) == 2
    assert "calls what does: save(...)" in report.left[1].why

    changed, report = after(tmp_path, whole(source), "save")
    assert code(changed).count("@transactional") == 1
    (left,) = report.left
    assert "calls what does: save(...)" in left.why


@pytest.mark.filterwarnings("ignore::flask_uow.exceptions.RuleWarning")
def test_view_is_a_unit_below_what_it_calls_that_commits(tmp_path: Path) -> None:
    """What it does itself comes after that."""
    source = """
        def save(account):
            db.session.add(account)
            db.session.commit()

        @app.post("/<owner>")
        def open_account(owner):
            account = Account(owner=owner)
            save(account)
            account.balance += 1
            db.session.commit()
            return {"id": account.id, "balance": account.balance}
        """
    changed, report = after(tmp_path, whole(source))

    assert "    save(account)\n    with transactional():\n        account.balance += 1\n    return" in changed
    assert [left.why.partition(" ")[0] for left in report.left] == ["save()"]
    requests = ["/bob", "/bob", "/cid"]
    was = ask(whole(source), tmp_path / "before.sqlite", requests)
    assert ask(changed, tmp_path / "after.sqlite", requests) == was


def test_what_nobody_knows_may_commit(tmp_path: Path) -> None:
    """What is called so does so."""
    source = """
        from flask_security import datastore

        @app.post("/<owner>")
        def open_account(owner):
            db.session.add(Account(owner=owner))
            datastore.commit()
            db.session.commit()
            return "opened"
        """
    changed, report = after(tmp_path, whole(source))

    assert code(changed) == code(whole(source))
    unknown, left = report.left
    assert unknown.why == "datastore.commit() may be a session's, or not: the source does not tell."
    assert "ends a transaction, or calls what does: datastore.commit()" in left.why


def test_an_ignored_line_is_nobodys_business(tmp_path: Path) -> None:
    """Somebody has decided."""
    source = """
        def save(account):
            db.session.add(account)
            db.session.commit()  # uow: ignore[UOW301]
        """
    _, report = after(tmp_path, whole(source))

    assert report.left == []


def test_without_an_extension_nothing_moves(tmp_path: Path) -> None:
    """A unit without it fails at the first call."""
    report = change(
        tmp_path,
        views="""
        from flask import Blueprint
        from elsewhere import db

        bp = Blueprint("bank", __name__)

        @bp.post("/")
        def count():
            db.session.add(object())
            db.session.commit()
            return ""
        """,
    )

    assert report.changes == []
    (left,) = report.left
    assert "it waits for the extension" in left.why


def test_migrations_are_alembics(tmp_path: Path) -> None:
    """They run in a transaction of its."""
    report = change(
        tmp_path,
        models=HEAD,
        revision="""
        from models import db
        revision, down_revision = "1", None

        def upgrade():
            db.session.commit()
        """,
    )

    assert [each.path.name for each in report.changes] == ["models.py"]
    assert report.left == []
