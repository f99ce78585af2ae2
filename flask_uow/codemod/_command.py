"""``python -m flask_uow.codemod``: print the diff, or write it, list what is left, end with the report's status."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import click

from ..exceptions import ConfigurationError
from ._report import Report

MISSING = "The codemod needs libcst. Install it: pip install 'flask_uow[codemod]'"


@click.command("codemod")
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path), metavar="PATH...")
@click.option("--write", is_flag=True, help="Change the files. Without it, the diff is printed and nothing is written.")
@click.option(
    "--function",
    "functions",
    multiple=True,
    metavar="NAME",
    help="Make units of these functions too: save, Account.save, bank.models.Account.save, bank.models.*",
)
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The checker's configuration; the nearest one, here or above, if it is not named.",
)
@click.pass_context
def codemod(
    context: click.Context, *, paths: tuple[Path, ...], write: bool, functions: tuple[str, ...], config: Path | None
) -> None:
    """Move what is mechanical of a Flask-SQLAlchemy app onto units of work.

    Views, functions that run before requests, commands and tasks that end in a commit by hand get @transactional in
    its place. Whatever else stands in the way of that is listed, as path:line:col: why. Nothing is imported or run.

    Exit status: 0; 1 if something is left to a human, or no file was found; 2 on wrong usage, or without libcst.
    """
    if find_spec("libcst") is None:
        raise click.UsageError(MISSING)
    from ..lint import read_settings  # here, after the look for libcst, without which this cannot be imported
    from ._run import change_paths

    try:
        settings = read_settings(Path.cwd(), config)
        report = change_paths(paths, settings, functions)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error
    for change in report.changes:
        if write:
            change.path.write_bytes(change.after)
        else:
            click.echo(change.diff, nl=False)
    for left in report.left:
        click.echo(str(left), err=True)
    click.echo(_summary(report, is_written=write), err=True)
    context.exit(report.status)


def _summary(report: Report, *, is_written: bool) -> str:
    changed = f"{_count(len(report.changes), 'file')} {'changed' if is_written else 'to change'}"
    units = f"{_count(report.moved, 'new unit')}"
    return f"{changed} of {report.files}, {units}, {_count(len(report.left), 'place')} left to you."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
