"""Python's own flags: units mean the same without asserts and docstrings, and break no rule of warnings."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.databases import Database

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0

DAY = [
    *[0, 0, ["/transfers", 201], ["/transfers", 422], ["/transfers", 404], ["/deposits", 201], ["/withdrawals", 201]],
    *[[f"/mistakes/{name}", 200] for name in ("commit-by-hand", "rollback-by-hand", "forget-to-commit")],
    5,
    [
        "customers 3, accounts 8",
        "transfers 6, entries 12",
        "customers own                  $1,411.42",
        "in the vault                   $1,411.33",
        "checks in clearing                 $0.09",
        "sum of all entries                 $0.00",
        "The books are in order.",
    ],
    0,
    {"committed": 15, "rolled back": 4, "rules": {"UOW101": 1, "UOW102": 1, "UOW103": 1}},
    0,
]


@pytest.mark.parametrize("flags", [["-O"], ["-OO"], ["-W", "error", "-bb", "-X", "dev"]], ids=" ".join)
def test_a_day_at_the_bank_is_the_same_with_flags(database: Database, tmp_path: Path, flags: list[str]) -> None:
    """What is kept, refused, undone and counted does not hang on an assert, and nothing warns or is left unclosed."""
    environment = {**os.environ, "DATABASE_URL": database.url}
    program = [sys.executable, *flags, "-m", "tests.environments.bank_day"]

    ended = subprocess.run(
        program, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )

    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == DAY
    assert "ResourceWarning" not in ended.stderr
