"""What the codemod moves: the source after it, and that the app does what it did before."""

import textwrap
from pathlib import Path

import pytest

from tests.codemod.sources import after, ask, code, whole

pytestmark = pytest.mark.filterwarnings("ignore::flask_uow.exceptions.RuleWarning")

# By name: the code, what becomes of it, and requests to both.
MOVES: dict[str, tuple[str, str, list[str]]] = {
    "a commit at the end goes": (
        """
        @app.post("/open/<owner>")
        def open_account(owner):
            db.session.add(Account(owner=owner))
            db.session.commit()
            return "opened"
        """,
        """
        @app.post("/open/<owner>")
        @transactional
        def open_account(owner):
            db.session.add(Account(owner=owner))
            return "opened"
        """,
        ["/open/bob", "/open/ann", "/open/cid"],
    ),
    "a commit before the key is read becomes a flush": (
        """
        @app.route("/open/<owner>", methods=["POST"])
        def open_account(owner):
            account = Account(owner=owner)
            db.session.add(account)
            db.session.commit()  # for the key
            return {"id": account.id, "balance": account.balance}
        """,
        """
        @app.route("/open/<owner>", methods=["POST"])
        @transactional
        def open_account(owner):
            account = Account(owner=owner)
            db.session.add(account)
            db.session.flush()  # for the key
            return {"id": account.id, "balance": account.balance}
        """,
        ["/open/bob", "/open/bob", "/open/cid"],
    ),
    "a view that only sometimes writes": (
        """
        def check(name):
            return len(name) == 3

        @app.route("/rename/<name>", methods=["GET", "POST"])
        def rename(name):
            account = db.session.execute(db.select(Account)).scalar_one()
            if request.method == "POST":
                error = None
                if not check(name):
                    error = "three letters"
                if error is None:
                    account.owner = name
                    db.session.commit()
                    flash("Renamed.")
                    return redirect("/")
                flash(error)
            return "form"
        """,
        """
        def check(name):
            return len(name) == 3

        @app.route("/rename/<name>", methods=["GET", "POST"])
        @transactional
        def rename(name):
            account = db.session.execute(db.select(Account)).scalar_one()
            if request.method == "POST":
                error = None
                if not check(name):
                    error = "three letters"
                if error is None:
                    account.owner = name
                    flash("Renamed.")
                    return redirect("/")
                flash(error)
            return "form"
        """,
        ["/rename/anna", "/rename/eve"],
    ),
    "one commit for each way, and an abort": (
        """
        @app.post("/<int:amount>")
        def deposit(amount):
            account = db.session.get(Account, 1) or abort(404)
            account.balance += amount
            if account.balance > 100:
                abort(422)
            if amount:
                # The books.
                db.session.commit()
                return "", 204
            else:
                db.session.delete(account)
                db.session.commit()
            return "closed"
        """,
        """
        @app.post("/<int:amount>")
        @transactional
        def deposit(amount):
            account = db.session.get(Account, 1) or abort(404)
            account.balance += amount
            if account.balance > 100:
                abort(422)
            if amount:
                # The books.
                return "", 204
            else:
                db.session.delete(account)
            return "closed"
        """,
        ["/5", "/200", "/0", "/5"],
    ),
    "nothing but the commit is left of a block": (
        """
        @app.post("/<int:amount>")
        def deposit(amount):
            if amount: db.session.commit()
            else:
                db.session.commit()
                # nothing
            return "same"
        """,
        """
        @app.post("/<int:amount>")
        @transactional
        def deposit(amount):
            if amount: pass
            else:
                pass
                # nothing
            return "same"
        """,
        ["/0", "/1"],
    ),
    "two statements in a line": (
        """
        @app.post("/<owner>")
        def open_account(owner):
            db.session.add(Account(owner=owner)); db.session.commit()
            return "opened"
        """,
        """
        @app.post("/<owner>")
        @transactional
        def open_account(owner):
            db.session.add(Account(owner=owner))
            return "opened"
        """,
        ["/bob", "/ann"],
    ),
    "a try that rolls back and raises again": (
        """
        @app.post("/<owner>")
        def open_account(owner):
            # One at a time.
            try:
                account = Account(owner=owner)

                db.session.add(account)
                db.session.commit()
            except Exception:
                db.session.rollback()
                raise
            return {"id": account.id}
        """,
        """
        @app.post("/<owner>")
        @transactional
        def open_account(owner):
            # One at a time.
            account = Account(owner=owner)

            db.session.add(account)
            db.session.flush()
            return {"id": account.id}
        """,
        ["/bob", "/bob", "/cid"],
    ),
    "a try that answers": (
        '''
        @app.post("/<owner>")
        def open_account(owner):
            text = """
            kept as it is
            """
            try:
                db.session.add(Account(owner=owner))
                # and now
                db.session.commit()
                flash("Opened.")
            except IntegrityError as error:
                app.logger.info("%s", error)
                db.session.rollback()
                return "taken", 409
            return text
        ''',
        '''
        @app.post("/<owner>")
        def open_account(owner):
            text = """
            kept as it is
            """
            try:
                with transactional():
                    db.session.add(Account(owner=owner))
                    # and now
                flash("Opened.")
            except IntegrityError as error:
                app.logger.info("%s", error)
                return "taken", 409
            return text
        ''',
        ["/bob", "/ann", "/cid"],
    ),
    "a try whose unit ends before others are told": (
        """
        sent = []

        def send_mail(account):
            sent.append(account.id)

        @app.post("/<owner>")
        def open_account(owner):
            try:
                account = Account(owner=owner)
                db.session.add(account)
                db.session.commit()
            except:
                db.session.rollback()
                raise
            send_mail(account)
            return {"id": account.id, "sent": sent}
        """,
        """
        sent = []

        def send_mail(account):
            sent.append(account.id)

        @app.post("/<owner>")
        def open_account(owner):
            with transactional():
                account = Account(owner=owner)
                db.session.add(account)
            send_mail(account)
            return {"id": account.id, "sent": sent}
        """,
        ["/bob", "/bob", "/cid"],
    ),
    "each turn of a loop by itself": (
        """
        @app.post("/<owners>")
        def open_accounts(owners):
            taken = []
            for owner in owners.split("-"):
                try:
                    db.session.add(Account(owner=owner))
                    db.session.commit()
                except IntegrityError:
                    db.session.rollback()
                    taken.append(owner)
            return {"taken": taken}
        """,
        """
        @app.post("/<owners>")
        def open_accounts(owners):
            taken = []
            for owner in owners.split("-"):
                try:
                    with transactional():
                        db.session.add(Account(owner=owner))
                except IntegrityError:
                    taken.append(owner)
            return {"taken": taken}
        """,
        ["/bob-ann-cid", "/cid-dee"],
    ),
    "one unit for each commit": (
        """
        @app.post("/<owner>")
        def open_accounts(owner):
            # First
            account = Account(owner=owner)  # hers
            db.session.add(account)
            db.session.commit()  # now

            other = Account(owner=f"{owner}{account.id}")
            db.session.add(other)
            if owner == "bob":
                db.session.commit()
            else:
                other.balance = account.id
                # Both.
                db.session.commit()
            if other.balance:
                abort(409)
            return {"id": other.id}
        """,
        """
        @app.post("/<owner>")
        def open_accounts(owner):
            # First
            account = Account(owner=owner)  # hers
            with transactional():
                db.session.add(account)
                # now

            other = Account(owner=f"{owner}{account.id}")
            db.session.add(other)
            if owner == "bob":
                db.session.commit()
            else:
                with transactional():
                    other.balance = account.id
                    # Both.
            if other.balance:
                abort(409)
            return {"id": other.id}
        """,
        ["/bob", "/ann", "/cid", "/bob"],
    ),
    "a unit for each turn": (
        """
        @app.post("/<owners>")
        def open_accounts(owners):
            for owner in owners.split("-"):
                if owner == "stop":
                    break

                # One of them
                db.session.add(Account(owner=owner))
                db.session.commit()
            return "opened"
        """,
        """
        @app.post("/<owners>")
        def open_accounts(owners):
            for owner in owners.split("-"):
                if owner == "stop":
                    break

                # One of them
                with transactional():
                    db.session.add(Account(owner=owner))
            return "opened"
        """,
        ["/bob-cid", "/dee-bob-eve", "/eve-stop-fay"],
    ),
    "a unit that ends before others are told": (
        """
        told = []

        def call(number):
            told.append(number)

        @app.post("/<owner>")
        def open_account(owner):
            account = db.session.get(Account, 1)
            if account is None:
                return "nobody"
            account.owner = owner
            db.session.commit()
            call(account.id)
            if len(told) > 1:
                raise LookupError("too many")
            return {"told": told}
        """,
        """
        told = []

        def call(number):
            told.append(number)

        @app.post("/<owner>")
        def open_account(owner):
            with transactional():
                account = db.session.get(Account, 1)
                if account is None:
                    return "nobody"
                account.owner = owner
            call(account.id)
            if len(told) > 1:
                raise LookupError("too many")
            return {"told": told}
        """,
        ["/bob", "/cid"],
    ),
    "loops, cases and what is at last": (
        """
        @app.post("/<owner>")
        def open_account(owner):
            number = 0
            while number < 9:
                number += 1
                if len(owner) == number:
                    break
            else:
                return "long"
            match number:
                case 3:
                    db.session.add(Account(owner=owner))
                case 4:
                    db.session.get(Account, 1).owner = owner
                case _:
                    return "odd"
            try:
                pass
            finally:
                number += 1
            db.session.commit()
            return "opened"
        """,
        """
        @app.post("/<owner>")
        @transactional
        def open_account(owner):
            number = 0
            while number < 9:
                number += 1
                if len(owner) == number:
                    break
            else:
                return "long"
            match number:
                case 3:
                    db.session.add(Account(owner=owner))
                case 4:
                    db.session.get(Account, 1).owner = owner
                case _:
                    return "odd"
            try:
                pass
            finally:
                number += 1
            return "opened"
        """,
        ["/bob", "/anna", "/al", "/bob", "/abcdefghijk"],
    ),
    "a method of a view class, and a decorator between": (
        """
        from functools import wraps
        from flask.views import MethodView

        def checked(view):
            @wraps(view)
            def wrapper(*args, **kwargs):
                return view(*args, **kwargs)

            return wrapper

        class Accounts(MethodView):
            @checked
            def post(self, owner):
                account = Account(owner=owner)
                db.session.add(account)
                db.session.commit()
                return self.answer(account)

            def answer(self, account):
                return {"id": account.id}

        app.add_url_rule("/<owner>", view_func=Accounts.as_view("accounts"))
        """,
        """
        from functools import wraps
        from flask.views import MethodView

        def checked(view):
            @wraps(view)
            def wrapper(*args, **kwargs):
                return view(*args, **kwargs)

            return wrapper

        class Accounts(MethodView):
            @checked
            @transactional
            def post(self, owner):
                account = Account(owner=owner)
                db.session.add(account)
                db.session.flush()
                return self.answer(account)

            def answer(self, account):
                return {"id": account.id}

        app.add_url_rule("/<owner>", view_func=Accounts.as_view("accounts"))
        """,
        ["/bob", "/ann"],
    ),
    "a rollback of what is written after the commit stays": (
        """
        @app.post("/<owner>")
        def open_account(owner):
            try:
                db.session.add(Account(owner=owner))
                db.session.commit()
                db.session.add(Account(owner=owner * 2))
                int(owner)
            except ValueError:
                db.session.rollback()
            db.session.add(Account(owner=owner * 3))
            db.session.commit()
            return "opened"
        """,
        """
        @app.post("/<owner>")
        def open_account(owner):
            try:
                with transactional():
                    db.session.add(Account(owner=owner))
                db.session.add(Account(owner=owner * 2))
                int(owner)
            except ValueError:
                db.session.rollback()
            with transactional():
                db.session.add(Account(owner=owner * 3))
            return "opened"
        """,
        ["/bob", "/1"],
    ),
    "a rollback of a commit that stays, stays": (
        """
        @app.post("/<owner>")
        def open_account(owner):
            try:
                db.session.add(Account(owner=owner))
                db.session.commit()
                db.session.add(Account(owner="ann"))
                db.session.commit()
            except IntegrityError:
                db.session.rollback()
            return str(db.session.query(Account).count())
        """,
        """
        @app.post("/<owner>")
        def open_account(owner):
            try:
                with transactional():
                    db.session.add(Account(owner=owner))
                db.session.add(Account(owner="ann"))
                db.session.commit()
            except IntegrityError:
                db.session.rollback()
            return str(db.session.query(Account).count())
        """,
        ["/bob", "/cid"],
    ),
    "what has its key is kept in g": (
        """
        from flask import g

        @app.post("/<owner>")
        def open_account(owner):
            g.account = Account(owner=owner)
            db.session.add(g.account)
            db.session.commit()
            return {"id": g.account.id}
        """,
        """
        from flask import g

        @app.post("/<owner>")
        @transactional
        def open_account(owner):
            g.account = Account(owner=owner)
            db.session.add(g.account)
            db.session.flush()
            return {"id": g.account.id}
        """,
        ["/bob", "/cid"],
    ),
    "what is asked without a flush before": (
        """
        @app.post("/<owner>")
        def open_account(owner):
            with db.session.no_autoflush:
                db.session.add(Account(owner=owner))
                db.session.commit()
                return str(Account.query.count())
        """,
        """
        @app.post("/<owner>")
        @transactional
        def open_account(owner):
            with db.session.no_autoflush:
                db.session.add(Account(owner=owner))
                db.session.flush()
                return str(Account.query.count())
        """,
        ["/bob", "/cid"],
    ),
    "an object that hands itself to the session after the commit": (
        """
        class Note(Account):
            def __init__(self, owner):
                self.owner = owner
                db.session.add(self)

        @app.post("/<owner>")
        def open_account(owner):
            db.session.add(Account(owner=owner))
            db.session.commit()
            Note(owner * 2)
            return "opened"
        """,
        """
        class Note(Account):
            def __init__(self, owner):
                self.owner = owner
                db.session.add(self)

        @app.post("/<owner>")
        def open_account(owner):
            with transactional():
                db.session.add(Account(owner=owner))
            Note(owner * 2)
            return "opened"
        """,
        ["/bob", "/cid"],
    ),
    "a property that writes after the commit": (
        """
        class Saver(Account):
            @property
            def code(self):
                self.balance = 7
                return "code"

        @app.post("/<owner>")
        def open_account(owner):
            account = Saver(owner=owner)
            db.session.add(account)
            db.session.commit()
            return account.code
        """,
        """
        class Saver(Account):
            @property
            def code(self):
                self.balance = 7
                return "code"

        @app.post("/<owner>")
        def open_account(owner):
            account = Saver(owner=owner)
            with transactional():
                db.session.add(account)
            return account.code
        """,
        ["/bob", "/cid"],
    ),
    "functions that call each other, of which one writes": (
        """
        def ping(owner):
            db.session.add(Account(owner=owner))
            pong(owner[1:])

        def pong(owner):
            if owner:
                ping(owner)

        @app.post("/<owner>")
        def open_account(owner):
            if owner == "all":
                ping(owner)
                db.session.commit()
                return "all"
            pong(owner)
            if owner == "nobody":
                return "no", 400
            db.session.commit()
            return "opened"
        """,
        """
        def ping(owner):
            db.session.add(Account(owner=owner))
            pong(owner[1:])

        def pong(owner):
            if owner:
                ping(owner)

        @app.post("/<owner>")
        def open_account(owner):
            if owner == "all":
                with transactional():
                    ping(owner)
                return "all"
            pong(owner)
            if owner == "nobody":
                return "no", 400
            db.session.commit()
            return "opened"
        """,
        ["/ab", "/nobody", "/all"],
    ),
    "a comment above a handler stays with it": (
        """
        @app.post("/<owner>")
        def open_account(owner):
            try:
                db.session.add(Account(owner=owner))
                db.session.commit()
            # Somebody has the name.
            except IntegrityError:
                db.session.rollback()
                raise
            return "opened"
        """,
        """
        @app.post("/<owner>")
        def open_account(owner):
            try:
                with transactional():
                    db.session.add(Account(owner=owner))
            # Somebody has the name.
            except IntegrityError:
                raise
            return "opened"
        """,
        ["/bob", "/bob"],
    ),
    "what the session would forget is flushed": (
        """
        @app.post("/<owner>")
        def rename(owner):
            db.session.get(Account, 1).owner = owner
            db.session.commit()
            db.session.expire_all()
            return "renamed"
        """,
        """
        @app.post("/<owner>")
        @transactional
        def rename(owner):
            db.session.get(Account, 1).owner = owner
            db.session.flush()
            db.session.expire_all()
            return "renamed"
        """,
        ["/bob", "/cid"],
    ),
    "a command that pushes its own context": (
        """
        @app.cli.command(with_appcontext=False)
        def open_accounts():
            app.app_context().push()
            db.session.add(Account(owner="bob"))
            db.session.commit()

        @app.post("/<owner>")
        def rename(owner):
            db.session.get(Account, 1).owner = owner
            db.session.commit()
            return "renamed"
        """,
        """
        @app.cli.command(with_appcontext=False)
        def open_accounts():
            app.app_context().push()
            with transactional():
                db.session.add(Account(owner="bob"))

        @app.post("/<owner>")
        @transactional
        def rename(owner):
            db.session.get(Account, 1).owner = owner
            return "renamed"
        """,
        ["/bob"],
    ),
    "what runs before requests, and another name of the session": (
        """
        session = db.session
        save = session.commit

        @app.before_request
        def count():
            account = session.get(Account, 1)
            account.balance += 1
            session.commit()

        @app.post("/<owner>")
        def rename(owner):
            session.get(Account, 1).owner = owner
            save()
            return "renamed"
        """,
        """
        session = db.session
        save = session.commit

        @app.before_request
        @transactional
        def count():
            account = session.get(Account, 1)
            account.balance += 1

        @app.post("/<owner>")
        def rename(owner):
            session.get(Account, 1).owner = owner
            save()
            return "renamed"
        """,
        ["/bob", "/cid"],
    ),
}
every_move = pytest.mark.parametrize(("before", "expected", "requests"), MOVES.values(), ids=MOVES)


@every_move
def test_source_after(tmp_path: Path, before: str, expected: str, requests: list[str]) -> None:
    """The change and nothing else."""
    changed, _ = after(tmp_path, whole(before))

    assert code(changed) == textwrap.dedent(expected).lstrip("\n")


@every_move
def test_app_answers_and_commits_as_before(tmp_path: Path, before: str, expected: str, requests: list[str]) -> None:
    """Each request leaves the same rows, as a second connection sees them."""
    source = whole(before)
    changed, _ = after(tmp_path, source)

    was = ask(source, tmp_path / "before.sqlite", requests)
    assert ask(changed, tmp_path / "after.sqlite", requests) == was
    assert any(answer < 400 for (answer, _), _ in was)


@every_move
def test_second_run_changes_nothing(tmp_path: Path, before: str, expected: str, requests: list[str]) -> None:
    """What is moved stays so, and what was left is left."""
    changed, first = after(tmp_path, whole(before))
    again, second = after(tmp_path, changed)

    assert again == changed
    assert second.moved == 0
    assert first.moved > 0


SAVE = """
class Book:
    def save(self, owner):
        account = Account(owner=owner)
        db.session.add(account)
        db.session.commit()
        return account

@app.post("/<owner>")
def open_account(owner):
    return {"id": Book().save(owner).id}

@app.post("/two/<owner>")
def open_two(owner):
    Book().save(owner)
    account = Book().save("ann")
    return {"id": account.id}
"""


@pytest.mark.parametrize("name", ["save", "Book.save", "bank.Book.save", "Book.*", "*"])
def test_a_function_moves_by_its_name(tmp_path: Path, name: str) -> None:
    """It is a unit for those that are none, and its callers stay as they are."""
    source = whole(SAVE)
    changed, report = after(tmp_path, source, name)

    assert code(changed) == SAVE.lstrip().replace("    def save", "    @transactional\n    def save").replace(
        "        db.session.commit()\n", ""
    )
    assert report.left == []
    requests = ["/bob", "/bob", "/two/cid", "/dee"]
    assert ask(changed, tmp_path / "after.sqlite", requests) == ask(source, tmp_path / "before.sqlite", requests)
