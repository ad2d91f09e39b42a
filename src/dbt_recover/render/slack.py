"""An alert as a Slack message: Block Kit, within Slack's limits however much has failed."""

from __future__ import annotations

from typing import Any

from ..alert import FAILED, RECOVERED, Alert, Failure, GaveUp
from ..model import as_word, listing
from .alerts import exposures, headline

# https://docs.slack.dev/reference/block-kit/blocks
MAX_BLOCKS = 50
MAX_SECTION = 3000
MAX_HEADER = 150
MAX_MESSAGE = 12_000
"""Characters of all blocks, to stay clear of a limit (msg_blocks_too_long) that Slack does not
document."""
MAX_TEXT = 4000

_FIRST, _FULL = 12, 36
"""How many failures are shown one by one."""
_NAMES = 15
_STOPS = 3


def message(alert: Alert, *, full: bool = False) -> dict[str, Any]:
    """What is posted to an incoming webhook: `text` for notifications, `blocks` to look at."""
    title = {FAILED: "dbt run failed", RECOVERED: "dbt run recovered"}
    blocks: list[dict[str, Any]] = [
        _header(title.get(alert.status, f"dbt run: {alert.status}")),
        _section(f"{_escaped(headline(alert), 1000)}\nbegan {alert.date} UTC"),
    ]
    blocks += [_section(_gave_up(cause)) for cause in alert.gave_up[:_STOPS]]
    tail = _tail(alert)
    room = MAX_MESSAGE - sum(map(_size, [*blocks, *tail])) - 200
    shown = 0
    for failure in alert.failures[: _FULL if full else _FIRST]:
        block = _section(_failure(failure, full))
        if _size(block) > room or len(blocks) + len(tail) + 2 > MAX_BLOCKS:
            break
        room -= _size(block)
        blocks.append(block)
        shown += 1
    if shown < len(alert.failures):
        blocks.append(
            _section(
                f"and {len(alert.failures) - shown} more failed: "
                + _code(f"dbt-recover show {as_word(alert.run_id)}")
            )
        )
    return {"text": _escaped(headline(alert), MAX_TEXT), "blocks": [*blocks, *tail]}


def _tail(alert: Alert) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if alert.blocked:
        names = _escaped(listing([_cut(n, 100) for n in alert.blocked], _NAMES), 2500)
        blocks.append(_section(f"*Not built ({len(alert.blocked)}):* {names}"))
    if alert.exposures:
        names = _escaped(exposures(alert, _NAMES), 2500)
        blocks.append(_section(f"*Exposures that read it ({len(alert.exposures)}):* {names}"))
    if alert.status == FAILED:
        blocks.append(_section(f"When the cause is mended:\n{_fenced(alert.command, 1000)}"))
    if alert.log_url:
        url = alert.log_url.replace("|", "%7C").replace(">", "%3E").replace("<", "%3C")
        link = {"type": "mrkdwn", "text": f"<{_escaped(url)}|log>"}
        blocks.append({"type": "context", "elements": [link]})
    return blocks


def _gave_up(cause: GaveUp) -> str:
    head = f"*dbt itself* gave up, *{cause.error_class}*\n"
    return f"{head}{_fenced(cause.error, 300)}\n_{cause.advice}_"


def _failure(failure: Failure, full: bool) -> str:
    where = f" in {_code(failure.path)}" if failure.path else ""
    head = (
        f"*{failure.kind}* {_code(failure.name)}: {failure.status}, "
        f"*{failure.error_class}*{where}\n"
    )
    error = _fenced(failure.error, 2000 if full else 300)
    query = f"\nquery {_code(failure.query_id)}" if failure.query_id else ""
    return head + error + query + f"\n_{failure.advice}_"


def _header(text: str) -> dict[str, Any]:
    return {"type": "header", "text": {"type": "plain_text", "text": _cut(text, MAX_HEADER)}}


def _section(text: str) -> dict[str, Any]:
    # verbatim: names of models and owners are not to become links or mentions.
    words = {"type": "mrkdwn", "text": _cut(text, MAX_SECTION), "verbatim": True}
    return {"type": "section", "text": words}


def _size(block: dict[str, Any]) -> int:
    texts = block.get("elements", [block.get("text")])
    return sum(len(t["text"]) for t in texts)


def _escaped(text: str, limit: int = MAX_SECTION) -> str:
    """Slack's three control characters: no mention and no link comes out of an error. At most
    `limit` characters, and no entity is cut."""
    text = _cut(text, limit)
    while True:
        escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        if len(escaped) <= limit:
            return escaped
        text = _cut(text, len(text) * limit // len(escaped))


def _code(text: str) -> str:
    return f"`{_escaped(text, 200).replace('`', chr(39))}`"


def _fenced(text: str, limit: int) -> str:
    return f"```{_escaped(text, limit).replace('`', chr(39))}```"


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"
