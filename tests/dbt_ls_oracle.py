"""What dbt itself selects, for tests: many command lines in one process, on one parse.

    python dbt_ls_oracle.py < {"project": DIR, "commands": [[ARGV...], ...]}

runs in an environment with dbt, and prints {"version": ..., "answers": [...]}: of `ls` the listed
unique_ids, of other commands those with a result, or null where dbt refused. `target/manifest.json`
of the project is what dbt parsed.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from dbt.cli.main import dbtRunner
from dbt.version import __version__


def answers(project: str, commands: list[list[str]]) -> list[list[str] | None]:
    directories = ["--project-dir", project, "--profiles-dir", project]
    quiet = ["--quiet", "--log-level-file", "none", "--no-use-colors"]
    parsed: Any = dbtRunner().invoke([*quiet, "parse", "--no-partial-parse", *directories])
    if not parsed.success:
        raise SystemExit(f"dbt cannot parse {project}: {parsed.exception}")
    runner = dbtRunner(manifest=parsed.result)
    found: list[list[str] | None] = []
    for argv in commands:
        listing = argv[0] == "ls"
        output = ["--output", "json", "--output-keys", "unique_id"] if listing else []
        # Written once, by the parse: what a command adds to a manifest would be new to the next.
        run: Any = runner.invoke([*quiet, "--no-write-json", *argv, *output, *directories])
        if run.result is None:
            found.append(None)
        elif listing:
            found.append(sorted(json.loads(line)["unique_id"] for line in run.result))
        else:
            ids = (result.node.unique_id for result in run.result.results)
            # Hooks have results too, and no selection is about them.
            found.append(sorted(uid for uid in ids if not uid.startswith("operation.")))
    return found


if __name__ == "__main__":
    request = json.load(sys.stdin)
    # dbt prints what it lists; standard output is for the answer alone.
    stdout, sys.stdout = sys.stdout, sys.stderr
    result = answers(request["project"], request["commands"])
    json.dump({"version": __version__, "answers": result}, stdout)
