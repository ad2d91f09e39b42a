"""Recovery equivalence: is the warehouse, after a run failed and was recovered, what it would be had
the run never failed; and with how few node executions?

    python benchmarks/equivalence.py [--cases 36] [--seed 1] [--only KIND] [--case I] [--recover WAY]
                                     [--min-nodes 10] [--max-nodes 40] [--json FILE] [--keep DIR] [--jobs 1]
                                     [--brute-force N]

Each case is a random dbt project on DuckDB (seeded), a way to fail, its mending, and every way to
recover, each on its own copy of the broken state. Right means: every table equals that of a clean
run of the mended project, row by row as multisets; the command exited with 0; and every test in scope
passed after the last build of what it tests. dbt-recover may also refuse (exit code 12), having done
nothing. Executions are counted from dbt's own events. The smallest set is explained and computed in
_equivalence_judge.py, and is itself executed (row `the smallest set`) as a check; with --brute-force
every smaller set of nodes is executed, too.

Cases that are not right, refused, or that execute more than the smallest set print the arguments that
reproduce them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _equivalence_case import SIZES, Case, Result
from _equivalence_failures import KINDS
from _equivalence_room import warm_dbt
from _equivalence_ways import ORACLE, WAYS, run_case
from tabulate import tabulate

OURS = "dbt-recover"


def main() -> int:
    """Parse the command line, run the cases, print the tables."""
    given = _arguments()
    # A shell starts what is to run in the background with SIGINT ignored, and so would all below.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    wanted = [(kind, index) for kind, index in _cases(given)]
    ways = given.recover or list(WAYS)
    cases: list[Case] = []
    began = time.monotonic()
    with _workshop(given.cold) as (home, dbt), ThreadPoolExecutor(given.jobs) as pool:

        def one(kind: str, index: int) -> Case | None:
            if given.minutes and time.monotonic() - began > given.minutes * 60:
                return None
            room = home / f"{kind}-{index}"
            case = _run_case(
                given.seed,
                kind,
                index,
                ways,
                sizes=(given.min_nodes, given.max_nodes),
                home=room,
                dbt=dbt,
                brute_force=given.brute_force,
            )
            if given.keep and _remarkable(case):
                shutil.copytree(room, Path(given.keep) / room.name, dirs_exist_ok=True)
            shutil.rmtree(room, ignore_errors=True)
            return case

        for future in as_completed([pool.submit(one, *each) for each in wanted]):
            case = future.result()
            if case is not None:
                cases.append(case)
                print(_line(case), file=sys.stderr, flush=True)
                if given.json:
                    _write(Path(given.json), given, cases)
    cases.sort(key=lambda c: (list(KINDS).index(c.kind), c.index))
    print(_report(cases, ways))
    if given.json:
        _write(Path(given.json), given, cases)
    broke = any("the benchmark broke" in c.void for c in cases)
    return 1 if broke or any(_is_wrong(c) or c.smaller for c in cases) else 0


def _run_case(seed: int, kind: str, index: int, ways: Sequence[str], **settings: Any) -> Case:
    """One case that breaks the benchmark itself must not take the others with it."""
    try:
        return run_case(seed, kind, index, ways, **settings)
    except Exception:  # noqa: BLE001  # of whatever kind: it is said, and counts as a failure
        sizes = settings["sizes"]
        return Case(seed, kind, index, sizes, void=f"the benchmark broke: {traceback.format_exc()}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", type=int, default=2 * len(KINDS), help="over all ways to fail")
    parser.add_argument("--only", action="append", choices=list(KINDS), help="ways to fail")
    parser.add_argument("--case", type=int, action="append", help="only the case of this number")
    parser.add_argument("--first", type=int, default=0, help="begin with the case of this number")
    parser.add_argument("--recover", action="append", choices=list(WAYS), help="ways to recover")
    parser.add_argument("--min-nodes", type=int, default=SIZES[0], help="of a project")
    parser.add_argument("--max-nodes", type=int, default=SIZES[1], help="of a project, up to 200")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--keep", metavar="DIR", help="keep what is left of remarkable cases there")
    parser.add_argument("--jobs", type=int, default=1, help="cases at once")
    parser.add_argument("--minutes", type=float, help="begin no case after this time")
    parser.add_argument(
        "--brute-force",
        type=int,
        default=0,
        metavar="N",
        help="execute every smaller set of nodes, in cases that have at most N of them",
    )
    parser.add_argument("--cold", action="store_true", help="let each dbt load its modules itself")
    return parser.parse_args()


def _cases(given: argparse.Namespace) -> Iterator[tuple[str, int]]:
    kinds = given.only or list(KINDS)
    if given.case is not None:
        for index in given.case:
            yield from ((kind, index) for kind in kinds)
        return
    for number in range(given.cases):
        yield kinds[number % len(kinds)], given.first + number // len(kinds)


@contextmanager
def _workshop(cold: bool) -> Iterator[tuple[Path, Path | None]]:
    with tempfile.TemporaryDirectory(prefix="dbt-recover-equivalence-") as directory:
        home = Path(directory)
        if cold:
            yield home, None
        else:
            with warm_dbt(home) as dbt:
                yield home, dbt


# ---- what came of it -------------------------------------------------------------------------


def _is_wrong(case: Case) -> bool:
    ours = case.results.get(OURS)
    return ours is not None and (ours.verdict == "wrong" or bool(ours.notes))


def _remarkable(case: Case) -> bool:
    ours = case.results.get(OURS)
    oracle = case.results.get(ORACLE)
    if oracle is not None and oracle.verdict != "right" and ours and ours.verdict == "right":
        return True
    return ours is not None and (ours.verdict != "right" or bool(ours.extra or ours.notes))


def _line(case: Case) -> str:
    if case.void:
        return f"{case.reproduction}: void: {' '.join(case.void.split())[-300:]}"
    words = [
        f"{way}={r.verdict}" + (f"+{len(r.extra)}" if r.extra else "")
        for way, r in case.results.items()
    ]
    return f"{case.reproduction}: {case.nodes} nodes; {case.story}; {' '.join(words)}"


def _report(cases: Sequence[Case], ways: Sequence[str]) -> str:
    done = [c for c in cases if not c.void]
    parts = [
        f"{len(done)} cases ({len(cases) - len(done)} void: the failure did not come about)",
        _by_way(done, ways),
        _brute_force(done),
    ]
    if OURS in ways:
        parts += [_by_kind(done), _extras(done)]
    parts += [_describe(c) for c in done if _remarkable(c)]
    return "\n\n".join(p for p in parts if p)


def _brute_force(cases: Sequence[Case]) -> str:
    tried = [c for c in cases if c.smaller_tried]
    found = [c for c in tried if c.smaller]
    if not tried:
        return ""
    sets = sum(c.smaller_tried for c in tried)
    text = (
        f"{len(tried)} cases, {sets} smaller sets executed: {len(found)} cases in which one did it"
    )
    lines = [f"by brute force: {text}"]
    lines += [f"  {c.reproduction}: {', '.join(c.smaller[0])}" for c in found]
    return "\n".join(lines)


def _by_way(cases: Sequence[Case], ways: Sequence[str]) -> str:
    rows = []
    for way in ways:
        found = [(c, c.results[way]) for c in cases if way in c.results]
        if not found:
            continue
        verdicts = Counter(r.verdict for _, r in found)
        right = [(c, r) for c, r in found if r.verdict == "right"]
        rows.append(
            [
                way,
                len(found),
                f"{100 * verdicts['right'] / len(found):.0f} %",
                verdicts["refused"] or "",
                verdicts["wrong"] or "",
                sum(r.verdict == "wrong" and r.exit_code == 0 for _, r in found) or "",
                _ratio(right),
                sum(len(r.executed) - len(set(r.executed) & set(c.smallest)) for c, r in right),
            ]
        )
    headers = [
        "way to recover",
        "cases",
        "right",
        "refused",
        "wrong",
        "of these exit 0",
        "executions / smallest, where right",
        "extra executions, where right",
    ]
    return tabulate(rows, headers, tablefmt="github")


def _ratio(right: Sequence[tuple[Case, Result]]) -> str:
    least = sum(len(c.smallest) for c, _ in right)
    return f"{sum(len(r.executed) for _, r in right) / least:.2f}" if least else ""


def _by_kind(cases: Sequence[Case]) -> str:
    rows = []
    for kind in KINDS:
        found = [(c, c.results[OURS]) for c in cases if c.kind == kind and OURS in c.results]
        if not found:
            continue
        verdicts = Counter(r.verdict for _, r in found)
        right = [(c, r) for c, r in found if r.verdict == "right"]
        refused = [r for _, r in found if r.verdict == "refused"]
        rows.append(
            [
                kind,
                len(found),
                verdicts["right"],
                len(refused) or "",
                sum(r.if_allowed == "right" for r in refused) or "",
                verdicts["wrong"] or "",
                _ratio(right),
                sum(len(r.extra) for _, r in right) or "",
            ]
        )
    headers = [
        "way to fail",
        "cases",
        "right",
        "refused",
        "right as advised",
        "wrong",
        "executions / smallest",
        "extra",
    ]
    return "dbt-recover by way of failing\n\n" + tabulate(rows, headers, tablefmt="github")


def _extras(cases: Sequence[Case]) -> str:
    """Why dbt-recover executed what the smallest set does without."""
    causes: Counter[str] = Counter()
    for case in cases:
        ours = case.results.get(OURS)
        if ours is not None and ours.verdict == "right":
            causes.update(
                f"{reason.partition(':')[0]} ({uid.partition('.')[0]})"
                for uid, reason in ours.extra.items()
            )
    if not causes:
        return ""
    rows = causes.most_common()
    return "extra executions by dbt-recover's own reason\n\n" + tabulate(
        rows, ["reason", "nodes"], tablefmt="github"
    )


def _describe(case: Case) -> str:
    ours = case.results.get(OURS)
    lines = [f"{case.reproduction}  ({case.story})"]
    oracle = case.results.get(ORACLE)
    if oracle is not None and oracle.verdict != "right":
        lines.append(
            f"  the smallest set itself is not enough: {'; '.join(oracle.differences[:2])}"
        )
    if ours is None:
        return "\n".join(lines)
    lines.append(
        f"  {ours.verdict}, exit code {ours.exit_code}"
        + (f"; if allowed: {ours.if_allowed}" if ours.if_allowed else "")
    )
    if ours.verdict == "refused":
        lines.append("  " + " ".join(ours.output.split("\n  ")[0].split())[:300])
    lines += [f"  differs: {d[:200]}" for d in ours.differences[:4]]
    lines += [f"  test does not hold: {t}" for t in ours.open_tests[:4]]
    lines += [f"  note: {n[:300]}" for n in ours.notes]
    lines += [f"  extra: {uid}: {reason}" for uid, reason in list(ours.extra.items())[:6]]
    return "\n".join(lines)


def _write(path: Path, given: argparse.Namespace, cases: Sequence[Case]) -> None:
    document = {"arguments": vars(given), "cases": [c.document() for c in cases]}
    path.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
