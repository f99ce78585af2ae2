"""``flask db-session-lint`` and ``python -m flask_uow.lint``: check files, print the report, end with its status."""

from __future__ import annotations

from pathlib import Path

import click

from ..exceptions import ConfigurationError

# The names of the formats, said here so that an app that never types the command does not load them.
FORMAT_NAMES = ("text", "json", "sarif", "github")


@click.command("db-session-lint")
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path), metavar="PATH...")
@click.option("--format", "format_name", type=click.Choice(FORMAT_NAMES), default="text", help="Default: text.")
@click.option("--show-unresolved", is_flag=True, help="List the calls that may be a session's or not.")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A pyproject.toml, setup.cfg or tox.ini; the nearest one, here or above, if it is not named.",
)
@click.pass_context
def db_session_lint(
    context: click.Context, *, paths: tuple[Path, ...], format_name: str, show_unresolved: bool, config: Path | None
) -> None:
    """Find in source what breaks the rules of sessions and units: commits by hand, views that are no units, and more.

    Nothing is imported or run, and no app is needed. The rules are in docs/lint.rst.

    Exit status: 0; 1 if something is found, or no file is; 2 on wrong usage.
    """
    from . import check_paths, read_settings  # here, so that an app that never types the command does not load them
    from ._formats import FORMATS, summary, unresolved_lines

    try:
        settings = read_settings(Path.cwd(), config)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error
    report = check_paths(paths, settings)
    click.echo(FORMATS[format_name](report), nl=False)
    if show_unresolved:
        for line in unresolved_lines(report):
            click.echo(line, err=True)
    click.echo(summary(report), err=True)
    context.exit(report.status)
