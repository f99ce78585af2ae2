"""E-mail that is not really sent: one JSON line each in a file, which all workers of a machine share."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from flask import current_app

from sample.bank.models import utc_now


@dataclass(frozen=True)
class Mail:
    """An e-mail in the outbox."""

    at: str
    to: str
    subject: str


def send(to: str, subject: str) -> None:
    """Append an e-mail to the outbox and log it; called after the commit, so that nobody is told of what was undone."""
    mail = Mail(at=utc_now().isoformat(), to=to, subject=subject)
    path = _path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(mail)) + "\n")
    current_app.logger.info("e-mail to %s: %s", to, subject)


def latest(limit: int = 50) -> list[Mail]:
    """Return the last e-mails, the newest first."""
    if not _path().exists():
        return []
    lines = _path().read_text(encoding="utf-8").splitlines()[-limit:]
    return [Mail(**json.loads(line)) for line in reversed(lines)]


def _path() -> Path:
    return Path(current_app.config["BANK_OUTBOX"])
