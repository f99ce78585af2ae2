"""``python -m flask_uow.codemod``: the codemod, without an app."""

from ._command import codemod

if __name__ == "__main__":
    codemod(prog_name="python -m flask_uow.codemod")
