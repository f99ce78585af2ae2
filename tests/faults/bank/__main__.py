"""``python -m tests.faults.bank``: the bank under faults, from several seeds, with ``flask_uow`` and by hand.

Exits with 1 if a transfer of ours was lost, doubled, or carried out although it was refused, if anything was left
behind, or if the bank did not answer in time after a fault was over.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.faults.bank.run import BY_HAND, FLASK_UOW, Plan, Report, run

MAX_RECOVERY_S = 2.0
TITLES = {FLASK_UOW: "flask_uow", BY_HAND: "by hand"}
TOLD = ("not known", "not known, and carried out", "no answer", "no answer, and carried out")


def figures(reports: Sequence[Report]) -> dict[str, str]:
    """What an app's runs come to, by name."""
    verdicts = [report.verdict for report in reports]
    told = _sum(verdict.unknown for verdict in verdicts)
    left = _sum(report.left for report in reports)
    recovered = [each for report in reports for each in report.recovered_s]
    return {
        "transfers acknowledged": f"{sum(report.journal.acknowledged for report in reports):,}",
        "faults (kinds)": f"{len(recovered)} ({len({name for name, _ in recovered})})",
        "lost: acknowledged, and not in the books": str(sum(len(verdict.lost) for verdict in verdicts)),
        "doubled: ordered once, twice in the books": str(sum(len(verdict.doubled) for verdict in verdicts)),
        "phantom: refused, and in the books": str(sum(len(verdict.phantom) for verdict in verdicts)),
        "what does not add up": str(sum(len(verdict.unsound) for verdict in verdicts)),
        "left behind": ", ".join(f"{number} {what}" for what, number in left.items()) or "0",
        **{f"told: {name}": str(told[name]) for name in TOLD},
        "slowest recovery": f"{max(seconds for _, seconds in recovered):.2f} s",
        "transfers a second": f"{sum(each.journal.acknowledged for each in reports) / _seconds(reports):.0f}",
    }


def complaints(report: Report) -> Iterator[str]:
    """What is wrong with a run, a line each."""
    verdict = report.verdict
    for name in ("lost", "doubled", "phantom"):
        for memo in getattr(verdict, name):
            yield f"{name}: {memo} (told: {', '.join(report.journal.told.get(memo, ()))})"
    yield from verdict.unsound
    for what, number in report.left.items():
        yield f"left: {number} {what}"
    for name, seconds in report.recovered_s:
        if seconds > MAX_RECOVERY_S:
            yield f"late: {name} was over for {seconds:.1f} s before the bank read and wrote again"


def _sum(counters: Iterable[Counter[Any]]) -> Counter[Any]:
    return sum(counters, Counter())


def _seconds(reports: Iterable[Report]) -> float:
    return sum(report.seconds for report in reports)


def _lines(reports: dict[str, list[Report]]) -> Iterator[str]:
    columns = {app: figures(own) for app, own in reports.items()}
    yield f"{'':<44}" + "".join(f"{TITLES[app]:>20}" for app in columns)
    for name in next(iter(columns.values())):
        yield f"{name:<44}" + "".join(f"{column[name]:>20}" for column in columns.values())
    for app, own in reports.items():
        yield from ("", f"{'faults, ' + TITLES[app]:<30}{'times':>6}{'slowest recovery':>20}")
        recovered = [each for report in own for each in report.recovered_s]
        for name in sorted({name for name, _ in recovered}):
            times_s = [seconds for other, seconds in recovered if other == name]
            yield f"{name:<30}{len(times_s):>6}{max(times_s):>18.2f} s"
        yield from ("", f"{'orders, ' + TITLES[app]:<24}{'answer':>24}{'times':>8}")
        for (path, answer), number in sorted(_sum(report.journal.answers for report in own).items()):
            yield f"{path:<24}{answer:>24}{number:>8}"


def main() -> int:
    """Run what the command line asks for, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--acknowledged", type=int, default=7000, help="of each seed")
    parser.add_argument("--faults", type=int, default=34, help="of each seed")
    parser.add_argument("--driver", choices=["psycopg2", "psycopg"], default="psycopg2")
    parser.add_argument("--only", choices=[FLASK_UOW, BY_HAND], help="one of the two")
    parser.add_argument("--log", type=Path, help="the file that the log of the last run's workers is to be in")
    options = parser.parse_args()
    apps = [options.only] if options.only else [FLASK_UOW, BY_HAND]
    reports: dict[str, list[Report]] = {app: [] for app in apps}
    for app in apps:
        for seed in options.seeds:
            report = run(Plan(seed, options.acknowledged, options.faults, options.driver, app, options.log))
            reports[app].append(report)
            sys.stdout.write(f"{TITLES[app]}, seed {seed}: {report.seconds:.0f} s\n")
            sys.stdout.writelines(f"  {line}\n" for line in list(complaints(report))[:20])
            sys.stdout.writelines(f"  not possible on this machine: {name}\n" for name in report.impossible)
            sys.stdout.flush()
    sys.stdout.writelines(f"{line}\n" for line in _lines(reports))
    return int(any(list(complaints(report)) for report in reports.get(FLASK_UOW, [])))


if __name__ == "__main__":
    sys.exit(main())
