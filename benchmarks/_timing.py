"""Whole processes, timed side by side: what the benchmarks share."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Measured:
    """One process, from its start to its end."""

    seconds: float
    """Wall clock."""
    cpu: float
    """User and system time of the process and of the children it waited for."""
    peak_mb: float
    """The largest resident set of the process, or of one of those children, in MB (10^6).

    Linux counts what the process held between fork and exec too, so the benchmark that starts it
    must itself stay small: it writes large files piece by piece."""
    own_peak_mb: float
    """The same without children; 0 unless it was asked for. Sampled, so a spike can be missed."""
    own_cpu: float
    exit_code: int
    stdout: str


def measure(
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    allowed: Sequence[int] = (0,),
    sample: bool = False,
) -> Measured:
    """Run a command and measure it. Exits with its output if it ends in another way than allowed.

    `sample`: look at the process itself, apart from its children, twenty times a second.
    """
    stem = cwd / f".benchmark-{os.getpid()}"
    out, err = stem.with_suffix(".out"), stem.with_suffix(".err")
    own_peak = own_cpu = 0.0
    # Output goes to files: a pipe would need a reader, whose work would be measured too.
    with out.open("wb") as stdout, err.open("wb") as stderr:
        began = time.perf_counter()
        process = subprocess.Popen(argv, cwd=cwd, env=dict(env), stdout=stdout, stderr=stderr)
        if sample:
            own_peak, own_cpu = _watch(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    text, trouble = out.read_text("utf-8", "replace"), err.read_text("utf-8", "replace")
    out.unlink()
    err.unlink()
    if process.returncode not in allowed:
        print(text[-2000:], trouble[-2000:], sep="\n", file=sys.stderr)
        sys.exit(f"{' '.join(argv)} ended with exit code {process.returncode}")
    scale = 1024 if sys.platform == "linux" else 1  # ru_maxrss: KiB on Linux, bytes on macOS
    return Measured(
        seconds=seconds,
        cpu=usage.ru_utime + usage.ru_stime,
        peak_mb=usage.ru_maxrss * scale / 1e6,
        own_peak_mb=own_peak / 1e6,
        own_cpu=own_cpu,
        exit_code=process.returncode,
        stdout=text,
    )


def _watch(pid: int) -> tuple[float, float]:
    """Peak resident bytes and CPU seconds of one process, until it has ended."""
    peak = cpu = 0.0
    try:
        process = psutil.Process(pid)
        while process.status() != psutil.STATUS_ZOMBIE:
            with process.oneshot():
                times = process.cpu_times()
                cpu = max(cpu, times.user + times.system)
                peak = max(peak, float(process.memory_info().rss))
            time.sleep(0.05)
    except psutil.Error:
        pass  # it ended between two looks
    return peak, cpu


def alternate(runs: int, *sides: Callable[[], Measured]) -> tuple[list[Measured], ...]:
    """Each side once per round, in turns and in changing order: what else the machine does falls
    on all of them alike."""
    results: tuple[list[Measured], ...] = tuple([] for _ in sides)
    for round_ in range(runs):
        order = range(len(sides)) if round_ % 2 == 0 else reversed(range(len(sides)))
        for index in order:
            results[index].append(sides[index]())
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return results


def line(name: str, found: Sequence[Measured]) -> str:
    """One row: median, fastest and slowest wall time, CPU time and memory."""
    seconds = [m.seconds for m in found]
    return (
        f"{name:<28} median {statistics.median(seconds):8.3f} s"
        f"   (from {min(seconds):.3f} to {max(seconds):.3f})"
        f"   cpu {statistics.median(m.cpu for m in found):7.3f} s"
        f"   peak memory {max(m.peak_mb for m in found):6.1f} MB"
    )


def median(found: Sequence[Measured]) -> float:
    """Median wall time in seconds."""
    return statistics.median(m.seconds for m in found)


def goal(text: str, value: float, limit: float, *, at_least: bool = False) -> str:
    """A line that says whether a goal of the design is met."""
    met = value >= limit if at_least else value <= limit
    return f"{text}; goal {'at least' if at_least else 'at most'} {limit:g}: {'met' if met else 'MISSED'}"


def environment() -> dict[str, str]:
    """Ours, without anything that configures dbt-recover, dbt or Airflow, and with the commands of
    our own environment first on PATH. Bytecode is kept, as an installation does: dbt has its own."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DBT_", "AIRFLOW_")) and name != "PYTHONDONTWRITEBYTECODE"
    }
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
        "DO_NOT_TRACK": "1",
    }
