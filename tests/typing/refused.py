"""What a type checker refuses; each line that is ignored here is an error there, of that kind."""

from flask import Flask
from sqlalchemy.orm import Session

from flask_uow import UnitOfWork, current_unit, transactional

uow = UnitOfWork(Flask(__name__))


@transactional
def bare(account_id: int) -> str:
    return str(account_id)


@transactional(retries=1)
def with_options(account_id: int) -> str:
    return str(account_id)


@transactional
async def coroutine(account_id: int) -> str:
    return str(account_id)


class Account:
    @transactional
    def pay(self, amount: int) -> str:
        return str(amount)

    @staticmethod
    @transactional
    def number(name: str) -> int:
        return len(name)

    @transactional
    @classmethod
    def open(cls, name: str) -> "Account":
        return cls()


# A decorated function takes what it took, and returns what it returned.
bare("1")  # type: ignore[arg-type]
bare()  # type: ignore[call-arg]
bare(1, 2)  # type: ignore[call-arg]
bare(account=1)  # type: ignore[call-arg]
number: int = bare(1)  # type: ignore[assignment]
with_options("1")  # type: ignore[arg-type]
wrong: int = with_options(1)  # type: ignore[assignment]
not_awaited: str = coroutine(1)  # type: ignore[assignment]
Account().pay("1")  # type: ignore[arg-type]
Account.pay(1)  # type: ignore[arg-type, call-arg]
Account.number(1)  # type: ignore[arg-type]
Account.open(1)  # type: ignore[arg-type]

# Options are keywords, each with its type.
transactional(retries="3")  # type: ignore[call-overload]
transactional(read_only=1)  # type: ignore[call-overload]
transactional(propagation="new")  # type: ignore[call-overload]
transactional(timeout="5 s")  # type: ignore[call-overload]
transactional(rollback_for=int)  # type: ignore[arg-type]
transactional(rollback_for=ValueError("not the class"))  # type: ignore[call-overload]
transactional(on_error=len)  # type: ignore[arg-type]
transactional(rollback_on_status="400")  # type: ignore[call-overload]
transactional(readonly=True)  # type: ignore[call-overload]
transactional(None, read_only=True)  # type: ignore[call-overload]
transactional(bare, read_only=True)  # type: ignore[call-overload]
transactional("nested")  # type: ignore[call-overload]
uow.transactional(retries="3")  # type: ignore[call-overload]

# A unit is given, not made; its hooks take nothing.
current_unit.after_commit(bare)  # type: ignore[arg-type]
with transactional() as unit:
    session: Session | None = unit  # type: ignore[assignment]
    unit.commit()  # type: ignore[attr-defined]
