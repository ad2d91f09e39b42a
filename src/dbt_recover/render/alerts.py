"""An alert as text, and as JSON for programs."""

from __future__ import annotations

from typing import Any

from ..alert import FAILED, RECOVERED, RUNNING, Alert
from ..model import listing
from .tables import duration

_SHOWN = 20


def headline(alert: Alert) -> str:
    """One line that says it all; the text of a notification."""
    if alert.status == RECOVERED:
        return (
            f"dbt run {alert.run_id} recovered by attempt {alert.attempts}: {alert.again} of "
            f"{alert.total} nodes re-run, {duration(alert.seconds)}"
        )
    if alert.status == RUNNING:
        return f"dbt run {alert.run_id} is still at work"
    if alert.status != FAILED:
        return f"dbt run {alert.run_id} succeeded: {alert.total} nodes, {duration(alert.seconds)}"
    if alert.failures:
        parts = [f"{len(alert.failures)} failed"]
    elif alert.gave_up:
        parts = [f"dbt itself gave up ({alert.gave_up[0].error_class})"]
    else:
        parts = ["it did not come to its end"]
    if alert.blocked:
        parts.append(f"{len(alert.blocked)} not built")
    after = f" after attempt {alert.attempts}" if alert.attempts > 1 else ""
    of = f", of {alert.total} node{'s' * (alert.total > 1)}" if alert.total else ""
    return f"dbt run {alert.run_id} failed{after}: {', '.join(parts)}{of}"


def exposures(alert: Alert, limit: int | None = None) -> str:
    """a (owner), b (owner) and 3 more."""
    return listing([f"{e.name} ({e.owner})" if e.owner else e.name for e in alert.exposures], limit)


def text(alert: Alert, *, full: bool = False) -> str:
    """For a log or a terminal."""
    parts = [headline(alert), f"began {alert.date} UTC"]
    for cause in alert.gave_up:
        parts += [f"  dbt itself gave up ({cause.error_class})", f"    {cause.error}"]
    shown = alert.failures if full else alert.failures[:_SHOWN]
    for failure in shown:
        where = f"  {failure.path}" if failure.path else ""
        parts.append(
            f"  {failure.kind} {failure.name}: {failure.status} ({failure.error_class}){where}"
        )
        parts += [f"    {line}" for line in failure.error.splitlines()]
        if failure.query_id:
            parts.append(f"    query {failure.query_id}")
    if len(alert.failures) > len(shown):
        parts.append(f"  and {len(alert.failures) - len(shown)} more")
    if alert.blocked:
        parts.append(f"not built: {listing(alert.blocked, None if full else 12)}")
    if alert.exposures:
        parts.append(f"exposures that read it: {exposures(alert, None if full else 12)}")
    if alert.log_url:
        parts.append(f"log: {alert.log_url}")
    if alert.status == FAILED:
        parts.append(alert.command)
    return "\n".join(parts)


def document(alert: Alert) -> dict[str, Any]:
    """What `notify --to webhook` posts."""
    return {
        "event": alert.status,
        "run_id": alert.run_id,
        "text": headline(alert),
        "began": alert.date,
        "attempts": alert.attempts,
        "total": alert.total,
        "failed": [
            {
                "unique_id": f.unique_id,
                "name": f.name,
                "status": f.status,
                "class": f.error_class,
                "error": f.error,
                "path": f.path or None,
                "query_id": f.query_id or None,
            }
            for f in alert.failures
        ],
        "gave_up": [{"class": g.error_class, "error": g.error} for g in alert.gave_up],
        "not_built": list(alert.blocked),
        "exposures": [{"name": e.name, "owner": e.owner or None} for e in alert.exposures],
        "again": alert.again if alert.status == RECOVERED else None,
        "seconds": alert.seconds,
        "log_url": alert.log_url or None,
        "command": alert.command if alert.status == FAILED else None,
    }
