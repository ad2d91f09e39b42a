"""Every archive key is built and parsed here; docs/archive-format.md draws the tree.

    archive.json                                         format marker
    ids/runs/<run>.json                                  where a run is kept; decides its beginning
    ids/invocations/<invocation>.json                    which run an invocation belongs to
    runs/<date>/<HHMMSS>~<run>/<invocation>/begun.json   written before dbt runs a node
                                           /commit.json  written last; names and hashes all data
                                           /~<summary>   what `runs` shows, in the key itself
    runs/<date>/<HHMMSS>~<run>/~pruned                   the run is being removed: it is not there
    data/<date>/<HHMMSS>~<run>/<invocation>/...          artifacts, results, graph, journal segments
    live/<run>/<invocation>                              heartbeat of a running invocation
    leases/<run>.json                                    who is retrying the run
    latest/<artifact>                                    plain artifacts of the last whole run

`<run>` is the run id, percent-encoded, so that any id (`manual__2026-01-31T06:00:00+00:00`) is one
path component in every store.
"""

from __future__ import annotations

import hashlib
import re
from urllib.parse import quote, unquote

import msgspec

from .errors import UsageError

FORMAT_VERSION = 1
MARKER = "archive.json"
RUNS = "runs/"
DATA = "data/"
LATEST = "latest/"

ARTIFACTS = ("manifest.json", "run_results.json", "catalog.json", "sources.json")
PARSE_STATE = "partial_parse.msgpack"
"""What dbt leaves and the archive keeps, byte for byte. Restoring takes names from here only."""

SETTLED = "settled"
"""In an invocation's place in a listing: a word on the whole run, which no invocation said."""

_PRUNED = "~pruned"
_MAX_ID = 120
_HASH = re.compile(r"[0-9a-f]{16}")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


def encode_id(text: str) -> str:
    """A run or step id as one path component; long ones keep their beginning and a hash. What
    `decode_id` gives back of a long one is encoded to the same. UsageError if it is no text."""
    return _encode(text, _MAX_ID)


def is_shortened(run_id: str) -> bool:
    """Whether `decode_id` could give back only the beginning of this id."""
    return _HASH.fullmatch(run_id.rpartition("=")[2]) is not None


def _encode(text: str, limit: int) -> str:
    head, equals, tail = text.rpartition("=")
    if equals and _HASH.fullmatch(tail) and len(_quote(head)) <= limit - len(tail) - 1:
        return f"{_quote(head)}={tail}"
    quoted = _quote(text)
    if len(quoted) <= limit:
        return quoted
    # '=' never comes out of quote(), so no other id can look like this.
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    while len(_quote(text)) > limit - 17:
        text = text[: min(len(text) - 1, limit)]
    return f"{_quote(text)}={digest}"


def decode_id(part: str) -> str:
    """The id that `encode_id` was given; of a long one its beginning, `=` and a hash."""
    return unquote(part)


def is_date(text: str) -> bool:
    """Whether text looks like a day, 2026-01-31."""
    return _DATE.fullmatch(text) is not None


def run_pointer(run_id: str) -> str:
    """Key of the object that says where the run is."""
    return f"ids/runs/{encode_id(run_id)}.json"


def run_pointer_prefix(beginning: str) -> str:
    """Prefix of the pointers of all runs whose id begins so."""
    return f"ids/runs/{_quote(beginning)[: _MAX_ID - 17]}"


def run_of_pointer(key: str) -> str:
    """The run id a pointer's key speaks of."""
    return decode_id(key.rsplit("/", 1)[1].removesuffix(".json"))


def invocation_pointer(invocation_id: str) -> str:
    """Key of the object that says which run an invocation belongs to."""
    return f"ids/invocations/{encode_id(invocation_id)}.json"


class RunPlace(msgspec.Struct, frozen=True):
    """Where a run's objects are."""

    date: str
    time: str
    """HHMMSS, UTC."""
    part: str
    """The encoded run id."""

    @classmethod
    def of(cls, run_id: str, began: str) -> RunPlace:
        """From the id and an ISO time."""
        return cls(began[:10], began[11:19].replace(":", ""), encode_id(run_id))

    @property
    def name(self) -> str:
        """date/time~id, the middle of all its keys."""
        return f"{self.date}/{self.time}~{self.part}"

    @property
    def run_id(self) -> str:
        """The id, decoded."""
        return decode_id(self.part)

    @property
    def began(self) -> str:
        """ISO, to the second."""
        t = self.time
        return f"{self.date}T{t[:2]}:{t[2:4]}:{t[4:6]}Z"

    def records(self, invocation_id: str = "") -> str:
        """Prefix of the run's (or one invocation's) records."""
        return f"{RUNS}{self.name}/" + (f"{encode_id(invocation_id)}/" if invocation_id else "")

    def data(self, invocation_id: str, name: str) -> str:
        """Key of a data object of an invocation."""
        return f"{DATA}{self.name}/{encode_id(invocation_id)}/{name}"

    def begun(self, invocation_id: str) -> str:
        """Key of the record written when an invocation begins."""
        return self.records(invocation_id) + "begun.json"

    def commit(self, invocation_id: str) -> str:
        """Key of the commit record."""
        return self.records(invocation_id) + "commit.json"

    def segments(self, invocation_id: str) -> str:
        """Prefix of the journal segments."""
        return self.data(invocation_id, "journal/")

    def segment(self, invocation_id: str, number: int) -> str:
        """Key of the journal's segment `number`, from 1."""
        return self.segments(invocation_id) + f"{number:06d}.jsonl.zst"

    @property
    def pruned(self) -> str:
        """Key of the mark that the run is being removed: from then on it is not there."""
        return f"{RUNS}{self.name}/{_PRUNED}"

    def heartbeat(self, invocation_id: str) -> str:
        """Key of the sign of life of a running invocation."""
        return f"live/{self.part}/{encode_id(invocation_id)}"

    @property
    def lease(self) -> str:
        """Key of the run's lease."""
        return f"leases/{self.part}.json"

    def of_step(self, step: str) -> RunPlace:
        """A place that only a lease is kept at: steps of a run are retried side by side."""
        return RunPlace(self.date, self.time, encode_id(f"{self.run_id}/{step}"))


class Summary(msgspec.Struct, frozen=True):
    """One invocation in a listing: all of it is in the key."""

    attempt: int
    state: str
    """ok, failed."""
    failed: int
    total: int
    seconds: float
    ended: str
    """ISO, to the second."""
    command: str
    step: str
    scope: str
    """`run` when it speaks for the whole run, else `step`."""
    logical_date: str = ""
    mark: str = ""
    """Tells the commands of one step apart: mapped tasks have one name."""

    def key(self, place: RunPlace, invocation_id: str) -> str:
        """The key that carries it."""
        fields = (
            str(self.attempt),
            self.state,
            str(self.failed),
            str(self.total),
            f"{self.seconds:.1f}",
            self.ended[:19].replace("-", "").replace(":", ""),
            _encode(self.command, 30),
            _encode(self.step, 60),
            self.scope,
            _encode(self.logical_date[:19], 40),
            _encode(self.mark, 16),
        )
        return place.records(invocation_id) + "~" + "~".join(fields)


def _quote(text: str) -> str:
    # '~' separates our fields, and a leading dot would hide the file.
    try:
        quoted = quote(text, safe="").replace("~", "%7E")
    except UnicodeEncodeError:
        raise UsageError(f"not text that an id can hold: {text!r}") from None
    return "%2E" + quoted[1:] if quoted.startswith(".") else quoted


class Listed(msgspec.Struct, frozen=True):
    """A key below runs/, taken apart."""

    place: RunPlace
    invocation_id: str
    kind: str
    """begun, commit, summary, or pruned, which is about the whole run."""
    summary: Summary | None = None


def parse_record_key(key: str) -> Listed | None:
    """None for a key this version does not know: somebody else's, or a later addition."""
    parts = key.removeprefix(RUNS).split("/")
    if len(parts) not in (3, 4) or not key.startswith(RUNS) or not is_date(parts[0]):
        return None
    date, run, invocation, name = parts if len(parts) == 4 else (*parts, "")
    time, tilde, part = run.partition("~")
    if not tilde or not re.fullmatch(r"\d{6}", time):
        return None
    place = RunPlace(date, time, part)
    if not name:
        return Listed(place, "", "pruned") if invocation == _PRUNED else None
    invocation_id = decode_id(invocation)
    if name in ("begun.json", "commit.json"):
        return Listed(place, invocation_id, name.removesuffix(".json"))
    summary = _parse_summary(name) if name.startswith("~") else None
    return Listed(place, invocation_id, "summary", summary) if summary else None


def _parse_summary(name: str) -> Summary | None:
    fields = name[1:].split("~")
    if len(fields) < 10:
        return None
    try:
        t = fields[5]
        ended = f"{t[:4]}-{t[4:6]}-{t[6:8]}T{t[9:11]}:{t[11:13]}:{t[13:15]}Z" if t else ""
        return Summary(
            attempt=int(fields[0]),
            state=fields[1],
            failed=int(fields[2]),
            total=int(fields[3]),
            seconds=float(fields[4]),
            ended=ended,
            command=unquote(fields[6]),
            step=unquote(fields[7]),
            scope=fields[8],
            logical_date=unquote(fields[9]),
            mark=unquote(fields[10]) if len(fields) > 10 else "",
        )
    except ValueError:
        return None
