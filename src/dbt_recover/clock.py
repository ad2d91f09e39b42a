"""The time, as dbt and the archive write it."""

from __future__ import annotations

from datetime import datetime, timezone


def now() -> str:
    """UTC, as dbt writes it: 2026-01-31T06:00:01.123456Z."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
