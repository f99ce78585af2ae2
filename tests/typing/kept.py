"""What a decorated function, method or block is for a type checker: what it was before."""

from collections.abc import Awaitable, Callable
from typing import assert_type

from flask import Flask
from flask.typing import ResponseReturnValue
from flask.views import MethodView
from sqlalchemy.orm import Session, scoped_session

from flask_uow import Propagation, Unit, UnitOfWork, current_unit, transactional

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
uow = UnitOfWork(app)


@transactional
def bare(account_id: int, *, note: str = "") -> list[str]:
    return [note] * account_id


@transactional()
def empty(account_id: int) -> str:
    return str(account_id)


@transactional(propagation="requires_new", read_only=True, isolation="SERIALIZABLE", deferrable=True, timeout=60)
def with_options(account_id: int, *notes: str) -> tuple[str, ...]:
    return notes[account_id:]


@transactional(
    propagation=Propagation.REQUIRED,
    retries=3,
    rollback_for=(KeyError, ValueError),
    no_rollback_for=LookupError,
    rollback_on_status=lambda status: status >= 500,
    on_error=lambda error: f"{error}",
    confirm_commit=True,
    durable=False,
    label="pay",
)
def with_more_options() -> bytes:
    return b""


@uow.transactional
def bound(account_id: int) -> str:
    return str(account_id)


@uow.transactional(retries=1)
def bound_with_options(account_id: int) -> str:
    return str(account_id)


@transactional
async def coroutine(account_id: int) -> str:
    return str(account_id)


@transactional(retries=1)
async def coroutine_with_options(account_id: int) -> str:
    return str(account_id)


@app.get("/accounts/<int:account_id>")
@transactional(read_only=True)
def view(account_id: int) -> ResponseReturnValue:
    return {"id": account_id}


class Account:
    @transactional
    def pay(self, amount: int) -> str:
        return str(amount)

    @transactional(read_only=True)
    def balance(self) -> int:
        return 0

    @staticmethod
    @transactional
    def number(name: str) -> int:
        return len(name)

    @transactional
    @staticmethod
    def number_outside(name: str) -> int:
        return len(name)

    @classmethod
    @transactional
    def open(cls, name: str) -> "Account":
        return cls()

    @transactional()
    @classmethod
    def open_outside(cls, name: str) -> "Account":
        return cls()


class AccountView(MethodView):
    decorators = [transactional, transactional(read_only=True)]  # noqa: RUF012 - as Flask's documentation writes it

    @transactional
    def get(self, account_id: int) -> ResponseReturnValue:
        return str(account_id)


# Handed on as values they keep their signatures too.
pays: Callable[[Account, int], str] = Account.pay
later: Callable[[int], Awaitable[str]] = coroutine


async def use() -> None:
    assert_type(bare(1, note="x"), list[str])
    assert_type(empty(1), str)
    assert_type(with_options(1, "a", "b"), tuple[str, ...])
    assert_type(with_more_options(), bytes)
    assert_type(bound(1), str)
    assert_type(bound_with_options(1), str)
    assert_type(await coroutine(1), str)
    assert_type(await coroutine_with_options(1), str)
    assert_type(view(1), ResponseReturnValue)
    assert_type(Account().pay(1), str)
    assert_type(Account().balance(), int)
    assert_type(Account.number("a"), int)
    assert_type(Account().number("a"), int)
    assert_type(Account.number_outside("a"), int)
    assert_type(Account().number_outside("a"), int)
    assert_type(Account.open("a"), Account)
    assert_type(Account.open_outside("a"), Account)
    assert_type(AccountView().get(1), ResponseReturnValue)


def blocks() -> int:
    with transactional() as unit:
        assert_type(unit, Unit)
        assert_type(unit.session, Session)
        assert_type(unit.label, str)
        assert_type(unit.depth, int)
        assert_type(unit.attempt, int)
        assert_type(unit.read_only, bool)
        assert_type(unit.is_active, bool)
        assert_type(unit.parent, Unit | None)
    with uow.transactional(label="bound") as unit:
        unit.set_rollback_only()
    assert_type(current_unit, Unit)
    assert_type(uow.session, scoped_session[Session])
    # A block swallows nothing, so that nothing is missing after it.
    with transactional(read_only=True):
        return 1


@transactional
def hooks() -> None:
    @current_unit.after_commit
    def send() -> None: ...

    current_unit.before_commit(lambda: None)
    current_unit.after_rollback(send)
