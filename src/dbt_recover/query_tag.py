"""What leads from a query in the warehouse's history back to the run: a variable that dbt is started
with, for the project's query-comment (or the profile's query_tag) to pass on.
"""

from __future__ import annotations

import msgspec

from .model import Invocation

VARIABLE = "DBT_RECOVER_QUERY_TAG"


def query_tag(invocation: Invocation) -> dict[str, str]:
    """The variable: one JSON object on one line. A run without a name of its own is told by when it
    began, which RUN takes, too. It can stand in a SQL comment and in a string of SQL."""
    said = {
        "run_id": invocation.run.run_id,
        "began": "" if invocation.run.run_id else invocation.run.began,
        "attempt": invocation.attempt,
        "step": invocation.step,
    }
    text = msgspec.json.encode({k: v for k, v in said.items() if v}).decode()
    for character in "*'":  # no end of a comment, no end of a string
        text = text.replace(character, f"\\u{ord(character):04x}")
    return {VARIABLE: text}
