"""Of DuckDB."""

from .entry import CODE, DATA, PERMISSION, QUOTA, TRANSIENT, Pattern

PATTERNS = (
    Pattern(
        TRANSIENT,
        ("duckdb",),
        text="^IO Error: Could not set lock on file",
        source="https://duckdb.org/docs/stable/connect/concurrency",
        sample="""\
Runtime Error in model orders (models/orders.sql)
  IO Error: Could not set lock on file "/data/warehouse.duckdb": Conflicting lock is held in /usr/bin/python3.11 (PID 1210). See also https://duckdb.org/docs/stable/connect/concurrency""",
    ),
    Pattern(
        QUOTA,
        ("duckdb",),
        text="^Out of Memory Error: |No space left on device",
        source="https://duckdb.org/docs/stable/guides/performance/how_to_tune_workloads",
        sample="""\
Runtime Error in model orders (models/orders.sql)
  Out of Memory Error: could not allocate block of size 256.0 KiB (953.6 MiB/953.6 MiB used)""",
    ),
    Pattern(
        CODE,
        ("duckdb",),
        prefix="Parser Error:",
        source="https://github.com/duckdb/duckdb/blob/main/src/common/exception.cpp",
        sample="""\
Runtime Error in model orders (models/orders.sql)
  Parser Error: syntax error at or near "form"

  LINE 4:   select * form raw_orders
                     ^""",
    ),
    Pattern(
        CODE,
        ("duckdb",),
        prefix="Binder Error:",
        source="https://github.com/duckdb/duckdb/blob/main/src/common/exception.cpp",
        sample="""\
Runtime Error in model orders (models/orders.sql)
  Binder Error: Referenced column "order_totl" not found in FROM clause!
  Candidate bindings: "order_total"

  LINE 4:   select order_totl from raw_orders
                   ^""",
    ),
    Pattern(
        CODE,
        ("duckdb",),
        prefix="Catalog Error:",
        source="https://github.com/duckdb/duckdb/blob/main/src/common/exception.cpp",
        sample="""\
Runtime Error in model orders (models/orders.sql)
  Catalog Error: Table with name raw_order does not exist!
  Did you mean "raw_orders"?""",
    ),
    Pattern(
        CODE,
        ("duckdb",),
        prefix="Not implemented Error:",
        source="https://github.com/duckdb/duckdb/blob/main/src/common/exception.cpp",
        sample="""\
Runtime Error in model orders (models/orders.sql)
  Not implemented Error: Unimplemented type for cast""",
    ),
    Pattern(
        DATA,
        ("duckdb",),
        prefix="Conversion Error:",
        source="https://github.com/duckdb/duckdb/blob/main/src/common/exception.cpp",
        sample="""\
Runtime Error in model stg_contracts (models/staging/stg_contracts.sql)
  Conversion Error: Could not convert string "2,388.00" to DECIMAL(12,2) when casting from source column annual_value""",
    ),
    Pattern(
        DATA,
        ("duckdb",),
        prefix="Invalid Input Error:",
        source="https://github.com/duckdb/duckdb/blob/main/src/common/exception.cpp",
        sample="""\
Runtime Error in model orders (models/orders.sql)
  Invalid Input Error: Could not parse string "31.01.2026" according to format specifier "%Y-%m-%d\"""",
    ),
    Pattern(
        DATA,
        ("duckdb",),
        prefix="Constraint Error:",
        source="https://github.com/duckdb/duckdb/blob/main/src/common/exception.cpp",
        sample="""\
Runtime Error in model orders (models/orders.sql)
  Constraint Error: Duplicate key "order_id: 7" violates unique constraint.""",
    ),
    Pattern(
        DATA,
        ("duckdb",),
        prefix="Out of Range Error:",
        source="https://github.com/duckdb/duckdb/blob/main/src/common/exception.cpp",
        sample="""\
Runtime Error in model orders (models/orders.sql)
  Out of Range Error: Overflow in multiplication of INT32 (2147483647 * 2)!""",
    ),
    Pattern(
        PERMISSION,
        ("duckdb",),
        prefix="Permission Error:",
        source="https://github.com/duckdb/duckdb/blob/main/src/common/exception.cpp",
        sample="""\
Runtime Error in model orders (models/orders.sql)
  Permission Error: Cannot access file "/data/orders.csv" - file system operations are disabled by configuration""",
    ),
    Pattern(
        TRANSIENT,
        ("duckdb",),
        prefix="TransactionContext Error:",
        source="https://duckdb.org/docs/stable/connect/concurrency",
        sample="""\
Runtime Error in model orders (models/orders.sql)
  TransactionContext Error: Conflict on update!""",
    ),
)
