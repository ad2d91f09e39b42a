"""A store's own time, where its library does not hand on the Date of its answers."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from ..errors import StorageError

_SECONDS = 5
_AGAIN = 300.0
"""Seconds after which it is asked again: two clocks drift apart."""


class StoreClock:
    """Asks the endpoint itself, without credentials: any answer, a refusal too, has a Date."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._ahead: float | None = None
        self._asked = 0.0

    def time(self) -> float:
        """Seconds since 1970, exact to about one. StorageError if it cannot be had."""
        now = time.monotonic()
        if self._ahead is None or now - self._asked > _AGAIN:
            self._ahead, self._asked = self._date() - now, now
        return time.monotonic() + self._ahead

    def _date(self) -> float:
        if urlsplit(self._endpoint).scheme not in ("http", "https"):
            raise StorageError(f"{self._endpoint} is no address to ask for the time")
        try:
            request = Request(self._endpoint, method="HEAD")
            with urlopen(request, timeout=_SECONDS) as answer:
                date = answer.headers.get("Date")
        except HTTPError as answer:
            date = answer.headers.get("Date")
        except (URLError, OSError, ValueError) as error:
            raise StorageError(f"{self._endpoint} does not tell the time: {error}") from error
        try:
            return float(parsedate_to_datetime(date).timestamp())
        except (TypeError, ValueError) as error:
            raise StorageError(f"{self._endpoint} does not tell the time") from error
