"""The audit trail: what was asked for stays written down, also when it is refused."""

from flask_uow import transactional
from sample.bank.db import uow
from sample.bank.models import Audit


@transactional(propagation="requires_new")
def record(action: str, detail: str) -> None:
    """Write one line in a unit of its own; call it before the caller's unit has used the database."""
    uow.session.add(Audit(action=action, detail=detail))
