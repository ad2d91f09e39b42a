"""`dbt-recover --help` against `python -c "import click"`, as whole processes.

python benchmarks/startup.py [--runs 20]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from _timing import alternate, environment, goal, line, measure, median

LIMIT = 2.0


def main() -> None:
    """Parse the command line and print what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dbt-recover-benchmark-") as directory:
        cwd, env = Path(directory), environment()
        help_argv = ["dbt-recover", "--help"]
        click_argv = [sys.executable, "-c", "import click"]
        measure(help_argv, cwd=cwd, env=env)  # so that both have their bytecode
        ours, bare = alternate(
            given.runs,
            lambda: measure(help_argv, cwd=cwd, env=env),
            lambda: measure(click_argv, cwd=cwd, env=env),
        )
    print(line("dbt-recover --help", ours))
    print(line('python -c "import click"', bare))
    ratio = median(ours) / median(bare)
    print(goal(f"--help takes {ratio:.2f} times as long", ratio, LIMIT))


if __name__ == "__main__":
    main()
