"""The bank's one connection to ``flask_uow``; every module that needs a session takes it from here."""

from flask_uow import UnitOfWork

uow = UnitOfWork()
