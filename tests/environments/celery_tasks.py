"""Tasks of a Celery app whose bodies run in app contexts, as Flask's documentation has it.

``celery --app tests.environments.celery_tasks worker`` finds its database and its folder in the environment. The app
uses its database at import, in the process that forks the pool's.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from celery import Celery, Task
from flask import Flask
from kombu.transport import filesystem

from flask_uow import UnitOfWork, current_unit, transactional
from tests.models import Item

BACKEND = sa.text("SELECT pg_backend_pid()")


class WholeFiles(filesystem.Channel):
    """Puts a message among the others when it is written: a worker would take it before, and end by it."""

    data_folder_out = None

    def _put(self, queue: Any, payload: Any, **kwargs: Any) -> None:  # type: ignore[override]
        folder = Path(self.transport_options["data_folder_out"])
        with tempfile.TemporaryDirectory(dir=folder) as self.data_folder_out:
            super()._put(queue, payload, **kwargs)  # type: ignore[no-untyped-call]
            for message in Path(self.data_folder_out).iterdir():
                message.rename(folder / message.name)


filesystem.Transport.Channel = WholeFiles
uow = UnitOfWork()


class UnluckyError(Exception):
    """The first attempt at a task fails."""


class ContextTask(Task):  # type: ignore[misc]  # Celery has no types
    """A task whose body has an app context of its own."""

    def __call__(self, *args: object, **kwargs: object) -> Any:
        with flask_app.app_context():
            return self.run(*args, **kwargs)


def make_app(url: str) -> Flask:
    """Make the Flask app; the tables are there already."""
    app = Flask("tasks")
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    uow.init_app(app)
    return app


def make_celery(folder: Path) -> Celery:
    """Make the Celery app, whose messages and results are files."""
    (folder / "messages").mkdir(parents=True, exist_ok=True)
    (folder / "results").mkdir(exist_ok=True)
    celery = Celery("tasks", task_cls=ContextTask)
    messages = str(folder / "messages")
    celery.conf.update(
        broker_url="filesystem://",
        broker_transport_options={"data_folder_in": messages, "data_folder_out": messages, "control_folder": messages},
        result_backend=f"file://{folder / 'results'}",
        worker_hijack_root_logger=False,
    )
    return celery


flask_app = make_app(os.environ["DATABASE_URL"])
celery_app = make_celery(Path(os.environ["CELERY_FOLDER"]))

# The context stays open on purpose, with a transaction in it.
context = flask_app.app_context()
context.push()
importers_backend = uow.session.scalar(BACKEND)


@celery_app.task(name="keep")  # type: ignore[untyped-decorator]
@transactional
def keep(name: str) -> dict[str, Any]:
    """Add a row, and tell who did it where."""
    uow.session.add(Item(name=name))
    uow.session.flush()
    return {"worker": os.getpid(), "backend": uow.session.scalar(BACKEND), "importer": importers_backend}


@celery_app.task(name="lose")  # type: ignore[untyped-decorator]
@transactional
def lose(name: str) -> None:
    """Add a row, and fail."""
    uow.session.add(Item(name=name))
    uow.session.flush()
    raise ValueError(name)


@celery_app.task(name="try_again", bind=True, max_retries=2)  # type: ignore[untyped-decorator]
@transactional
def try_again(task: Task, name: str) -> int:
    """Add a row; Celery is to make another attempt after the first."""
    uow.session.add(Item(name=name))
    uow.session.flush()
    if not task.request.retries:
        raise task.retry(countdown=0, exc=UnluckyError(name))
    retries: int = task.request.retries
    return retries


@celery_app.task(name="order")  # type: ignore[untyped-decorator]
@transactional
def order(name: str) -> None:
    """Add a row, and when it is committed let another task see it."""
    uow.session.add(Item(name=name))
    current_unit.after_commit(lambda: see.delay(name))


@celery_app.task(name="see")  # type: ignore[untyped-decorator]
@transactional
def see(name: str) -> None:
    """Add a row if the one of this name is there."""
    if uow.session.scalar(sa.select(Item).where(Item.name == name)) is not None:
        uow.session.add(Item(name=f"{name}, seen"))
