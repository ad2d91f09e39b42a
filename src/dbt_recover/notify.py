"""Post an alert to a webhook: bounded in time, and whatever happens it stops nothing.

The address of a webhook is a secret: it is neither printed nor kept. What can go wrong is told as a
sentence, without it.
"""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException, responses
from typing import IO, Any
from urllib.parse import urlsplit

import msgspec

from .errors import UsageError

BOUND_SECONDS = 10.0
"""How long all of it may take: names, connections, TLS, a second try."""


def check_url(url: str, what: str) -> None:
    """UsageError, without the URL in it, if that is no web address."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        good = False
    if not good or any(c.isspace() for c in url):
        raise UsageError(f"{what} is not a URL that begins with https:// or http://")


def post(url: str, document: Any, *, bound: float = BOUND_SECONDS) -> str:
    """Post JSON. Returns '' if it was accepted, else what went wrong; after `bound` seconds at the
    latest. A 429 or 5xx is tried once more."""
    done = threading.Event()
    answer: list[str] = []

    def work() -> None:
        try:
            answer.append(_twice(url, msgspec.json.encode(document), bound, done.wait))
        finally:
            done_working.set()

    done_working = threading.Event()
    # A thread, because no timeout of a socket bounds a look-up or an answer that only drips.
    threading.Thread(target=work, daemon=True).start()
    done_working.wait(bound)
    done.set()
    return answer[0] if answer else f"no answer within {bound:.0f} s"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """What is posted goes where it was meant to go and nowhere else."""

    def redirect_request(
        self, _req: urllib.request.Request, _fp: IO[bytes], *_rest: Any
    ) -> urllib.request.Request | None:
        return None


def _twice(url: str, body: bytes, bound: float, wait: Callable[[float], bool]) -> str:
    again, trouble = _once(url, body, bound)
    if not again or wait(min(again, bound)):
        return trouble
    return _once(url, body, bound)[1]


def _once(url: str, body: bytes, timeout: float) -> tuple[float, str]:
    """(seconds after which it is worth another try, or 0; what went wrong)."""
    request = urllib.request.Request(
        url, body, {"Content-Type": "application/json", "User-Agent": "dbt-recover"}, method="POST"
    )
    try:
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=timeout):
            return 0, ""
    except urllib.error.HTTPError as exc:
        with exc:
            # The words of the standard: a server's or a proxy's own can name the URL.
            said = f"it answered {exc.code} {responses.get(exc.code, '')}".rstrip()
            return _retry_after(exc) if exc.code == 429 or exc.code >= 500 else 0, said
    except urllib.error.URLError as exc:
        return 0, f"it cannot be reached: {exc.reason}"
    except (OSError, HTTPException, ValueError) as exc:
        # Not its words: some name the URL.
        return 0, f"it cannot be reached: {type(exc).__name__}"


def _retry_after(exc: urllib.error.HTTPError) -> float:
    value = exc.headers.get("Retry-After", "")
    return float(value) if value.isdigit() and value != "0" else 1.0
