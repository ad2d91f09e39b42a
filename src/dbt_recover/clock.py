"""The time, as dbt and the archive write it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta, timezone


def now() -> str:
    """UTC, as dbt writes it: 2026-01-31T06:00:01.123456Z."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def after(stamps: Iterable[str]) -> str:
    """Now, or a moment after the latest of these if the clock of this machine is behind them."""
    known = [datetime.fromisoformat(s.replace("Z", "+00:00")) for s in stamps if s]
    moment = max([datetime.now(timezone.utc), *(k + timedelta(microseconds=1) for k in known)])
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
