"""The process begins here: `dbt-recover`, and `python -m dbt_recover`."""

from __future__ import annotations

import gc

# Before the imports, a tenth of which it would take. A command is short-lived, and it costs more than
# it would free; exec and retry, which are not, collect again.
gc.disable()

from .cli import main  # noqa: E402

if __name__ == "__main__":
    main()
