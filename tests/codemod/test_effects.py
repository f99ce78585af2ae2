"""What the codemod believes of single lines: whether they write, end a transaction, tell others, raise on purpose."""

import ast
from pathlib import Path

import pytest

from flask_uow.codemod._effects import Effect, Effects
from flask_uow.lint._project import Project
from flask_uow.lint._resolve import Resolver
from flask_uow.lint._scopes import FUNCTION_NODES, all_nodes
from tests.codemod.sources import whole

CODE = """
import logging
import requests
import shutil
from contextlib import contextmanager
from flask import current_app, g, jsonify, make_response, session, url_for
from flask_login import current_user, login_user
from flask_wtf import FlaskForm
from flask_uow import transactional
from sqlalchemy import text, update
from sqlalchemy.orm.attributes import flag_modified
from wtforms import StringField

logger = logging.getLogger(__name__)

class Form(FlaskForm):
    owner = StringField()

class Book:
    def __init__(self, owner):
        self.owner = owner

    def turn(self):
        self.page = 2

    def look(self):
        return self.page

class Loud:
    def __init__(self):
        requests.post("https://example.org")

class Kept:
    def __init__(self, owner):
        self.owner = owner
        db.session.add(self)

    @property
    def opened(self):
        self.pages = []
        return self.pages

class Saved(Kept):
    pass

class Committed:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        db.session.commit()

def committed(function):
    def wrapped(*args):
        function(*args)
        db.session.commit()
    return wrapped

@committed
def save(account):
    return account

def quiet(number):
    return number + 1

def loud():
    requests.post("https://example.org")

def refuse(number):
    if number:
        raise LookupError(number)

def again(number):
    return again(number - 1) if number else db.session.commit()

@transactional
def unit():
    pass

def with_unit():
    with transactional():
        pass

def view(account, call, books: list[Book], names: set[str] | None = None):
    form, edit = Form(), Form()
    found, known, answer = [], {}, make_response("")
    LINE
"""
NOTHING, WRITES, ENDS, TELLS, RAISES = Effect.NOTHING, Effect.WRITES, Effect.ENDS, Effect.TELLS, Effect.RAISES
LINES = {
    # Other names for nothing.
    "count = quiet(1) + len(request.form)": NOTHING,
    'db.session.execute(text("SET TRANSACTION READ WRITE"))': NOTHING,
    "found.append(account); known['a'] = account; answer.headers['X'] = '1'": NOTHING,
    "pages: list[int] = []; pages.append(1); names.update(['ann'])": NOTHING,
    "g.user = account; session['number'] = 1; session.clear()": NOTHING,
    "logger.info('%s', account); current_app.logger.warning('x')": NOTHING,
    "return jsonify({'url': url_for('index')}), 'x'.replace('x', 'y')": NOTHING,
    "login_user(account); flash('done')": NOTHING,
    "db.session.execute(db.select(Account).where(Account.id == 1)).scalar_one()": NOTHING,
    "Account.query.filter_by(owner='ann').first()": NOTHING,
    "form.owner.data = account.owner; form.validate_on_submit()": NOTHING,
    "edit.mode = 1": WRITES,
    "Book('ann'); account.look()": NOTHING,
    # Writes.
    "account.owner = 'bob'": WRITES,
    "account.balance += 1": WRITES,
    "g.user.balance += 1": WRITES,
    "del account.owner": WRITES,
    "account.data['x'] = 1": WRITES,
    "current_user.owner = 'bob'": WRITES,
    "setattr(account, 'owner', 'bob')": WRITES,
    "db.session.delete(account)": WRITES,
    "db.session.execute(update(Account).values(balance=1))": WRITES,
    "db.session.execute(text('DELETE FROM account'))": WRITES,
    "Account.query.filter_by(owner='ann').delete()": WRITES,
    "flag_modified(account, 'balance')": WRITES,
    "account.turn()": WRITES,
    "current_user.turn()": WRITES,
    "account.set_password('x')": WRITES | TELLS,
    "form.populate_obj(account)": WRITES | TELLS,
    "account.books.append(Book('ann'))": WRITES | TELLS,
    "books.append(Book('ann'))": WRITES | TELLS,
    "form.load({}, instance=account)": WRITES | TELLS,
    "call(account)": WRITES | TELLS,
    "sorted([1], key=lambda each: account.turn())": WRITES,
    "list(map(db.session.add, [account]))": WRITES,
    "sorted([account], key=Book.turn)": WRITES,
    "Kept('ann')": WRITES,
    "Saved('ann')": WRITES,
    "account.opened.count(1)": WRITES,
    "for account.balance in (1, 2): pass": WRITES,
    # Ends of transactions.
    "db.session.rollback()": ENDS,
    "db.session.execute(text('COMMIT'))": ENDS,
    "unit()": ENDS,
    "with_unit()": ENDS,
    "again(2)": ENDS,
    "call_later(db.session.commit)": ENDS,
    "list(map(again, [1]))": ENDS,
    "save(account)": ENDS,
    "with Committed(): pass": ENDS,
    "account.store.commit()": ENDS,
    "app.app_context().push()": ENDS | TELLS,
    # Told to others, refused.
    "requests.post('https://example.org')": TELLS,
    "loud()": TELLS,
    "Loud()": TELLS,
    "account.remind.delay(1)": TELLS,
    "shutil.rmtree('a')": TELLS,
    "abort(404)": RAISES,
    "exit(1)": RAISES,
    "assert account, 'nobody'": RAISES,
    "refuse(1)": RAISES,
    "db.get_or_404(Account, 1)": RAISES,
}


@pytest.mark.parametrize(("line", "expected"), LINES.items(), ids=LINES)
def test_effect_of_a_line(tmp_path: Path, line: str, expected: Effect) -> None:
    """In a view that knows what the module knows."""
    project = Project([tmp_path])
    module = project.parse(tmp_path / "bank.py", whole(CODE.replace("LINE", line)).encode())
    effects = Effects(Resolver(project, (), ()), [module])
    scopes = (module.scopes[node] for node, _ in all_nodes(module.scope) if isinstance(node, FUNCTION_NODES))
    scope = next(each for each in scopes if getattr(each.node, "name", "") == "view")
    assert isinstance(scope.node, ast.FunctionDef)

    found = Effect.NOTHING
    for statement in scope.node.body[2:]:
        found |= effects.of(statement, scope)

    assert found & ~(Effect.ASKS | Effect.GIVES) == expected
