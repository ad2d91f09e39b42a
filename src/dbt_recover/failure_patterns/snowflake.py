"""Of Snowflake."""

from .entry import CODE, DATA, PERMISSION, QUOTA, TIMEOUT, TRANSIENT, Pattern

PATTERNS = (
    Pattern(
        QUOTA,
        ("snowflake",),
        text="cannot be resumed because resource monitor .* has exceeded its quota",
        source="https://docs.snowflake.com/en/user-guide/resource-monitors",
        sample="""\
Database Error in model orders (models/orders.sql)
  090073 (22000): Warehouse 'TRANSFORMING_WH' cannot be resumed because resource monitor 'MONTHLY' has exceeded its quota.""",
    ),
    Pattern(
        PERMISSION,
        ("snowflake",),
        text=r"^250001\b.*Incorrect username or password",
        source="https://github.com/coiled/benchmarks/issues/1345",
        sample="""\
Database Error in model orders (models/orders.sql)
  250001 (08001): Failed to connect to DB: ab12345.snowflakecomputing.com:443. Incorrect username or password was specified.""",
    ),
    Pattern(
        PERMISSION,
        ("snowflake",),
        text=r"^250001\b.*(?:JWT token is invalid|User temporarily locked|IP/Token .* is not allowed)",
        source="https://docs.snowflake.com/en/user-guide/key-pair-auth-troubleshooting",
        sample="""\
Database Error in model orders (models/orders.sql)
  250001 (08001): Failed to connect to DB: ab12345.snowflakecomputing.com:443. JWT token is invalid. [5ea1c1b5-7d0b-4b4f-8a0a-3d7a1d6d9c5e]""",
    ),
    Pattern(
        TRANSIENT,
        ("snowflake",),
        text=r"^250001\b.*Could not connect to Snowflake backend after",
        source="https://github.com/snowflakedb/snowflake-connector-python/blob/main/src/snowflake/connector/network.py",
        sample="""\
Database Error in model orders (models/orders.sql)
  250001: Could not connect to Snowflake backend after 2 attempt(s).Aborting""",
    ),
    Pattern(
        TRANSIENT,
        ("snowflake",),
        text=r"\bhas locked table\b.*\bthis lock has not yet been released",
        source="https://github.com/brooklyn-data/dbt_artifacts/issues/431",
        sample="""\
Database Error in model orders (models/orders.sql)
  000625 (57014): Statement '01b43b22-0509-2fce-0003-29019743c0af' has locked table 'MODELS' in transaction 1715330074481000000 and this lock has not yet been released.
  Your statement '01b43b22-0509-2fce-0003-29019743c13b' was aborted because the number of waiters for this lock exceeds the 20 statements limit.""",
    ),
    Pattern(
        TRANSIENT,
        ("snowflake",),
        text=r"^252007\b.*Authentication token has expired",
        source="https://github.com/dbt-labs/dbt-core/issues/654",
        sample="""\
Database Error in model orders (models/orders.sql)
  252007 (08001): Authentication token has expired. The user must authenticate again.""",
    ),
    Pattern(
        TIMEOUT,
        ("snowflake",),
        code="000630",
        source="https://github.com/datahub-project/datahub/pull/13443",
        sample="""\
Database Error in model orders (models/orders.sql)
  000630 (57014): Statement reached its statement or warehouse timeout of 10,800 second(s) and was canceled.""",
    ),
    Pattern(
        TRANSIENT,
        ("snowflake",),
        code="000625",
        source="https://docs.snowflake.com/en/sql-reference/transactions",
        sample="""\
Database Error in model orders (models/orders.sql)
  000625 (57014): 01b43b22-0509-2fce-0003-29019743c13b: Statement '01b43b22-0509-2fce-0003-29019743c0af' has locked table 'ORDERS' and was waited for too long.""",
    ),
    Pattern(
        TRANSIENT,
        ("snowflake",),
        code="390114",
        source="https://github.com/snowflakedb/snowflake-connector-python/issues/218",
        sample="""\
Database Error in model orders (models/orders.sql)
  390114 (08001): Authentication token has expired.  The user must authenticate again.""",
    ),
    Pattern(
        PERMISSION,
        ("snowflake",),
        code="003001",
        source="https://docs.snowflake.com/en/user-guide/security-access-control-overview",
        sample="""\
Database Error in model orders (models/orders.sql)
  003001 (42501): SQL access control error:
  Insufficient privileges to operate on schema 'DBT_PROD'""",
    ),
    Pattern(
        CODE,
        ("snowflake",),
        code="001003",
        source="https://github.com/dbt-labs/dbt-adapters/issues/951",
        sample="""\
Database Error in model orders (models/orders.sql)
  001003 (42000): SQL compilation error:
  syntax error line 1 at position 41 unexpected '10000'.""",
    ),
    Pattern(
        CODE,
        ("snowflake",),
        code="000904",
        source="https://docs.snowflake.com/en/sql-reference/identifiers-syntax",
        sample="""\
Database Error in model orders (models/orders.sql)
  000904 (42000): 01b43b22-0509-2fce-0003-29019743c13b: SQL compilation error: error line 3 at position 7
  invalid identifier 'ORDER_TOTL'
  compiled code at target/run/shop/models/orders.sql""",
    ),
    Pattern(
        CODE,
        ("snowflake",),
        code="002003",
        source="https://docs.snowflake.com/en/sql-reference/ddl-table",
        sample="""\
Database Error in model orders (models/orders.sql)
  002003 (42S02): SQL compilation error:
  Object 'ANALYTICS.DBT_PROD.STG_ORDERS' does not exist or not authorized.""",
    ),
    Pattern(
        DATA,
        ("snowflake",),
        code="100090",
        source="https://github.com/dbt-labs/dbt-core/issues/10432",
        sample="""\
Database Error in model orders (models/orders.sql)
  100090 (42P18): Duplicate row detected during DML action
  Row Values: [redacted]
  compiled code at target/run/shop/models/orders.sql""",
    ),
    Pattern(
        DATA,
        ("snowflake",),
        code="100069",
        source="https://docs.snowflake.com/en/sql-reference/functions/parse_json",
        sample="""\
Database Error in model orders (models/orders.sql)
  100069 (22P02): Error parsing JSON: unknown keyword "order", pos 6""",
    ),
    Pattern(
        DATA,
        ("snowflake",),
        code="100038",
        source="https://docs.snowflake.com/en/sql-reference/functions/try_cast",
        sample="""\
Database Error in model orders (models/orders.sql)
  100038 (22018): Numeric value '2,388.00' is not recognized""",
    ),
    Pattern(
        DATA,
        ("snowflake",),
        code="100035",
        source="https://docs.snowflake.com/en/sql-reference/functions/to_timestamp",
        sample="""\
Database Error in model orders (models/orders.sql)
  100035 (22007): Timestamp '31.01.2026' is not recognized""",
    ),
    Pattern(
        DATA,
        ("snowflake",),
        code="100051",
        source="https://docs.snowflake.com/en/sql-reference/functions/div0",
        sample="""\
Database Error in model orders (models/orders.sql)
  100051 (22012): Division by zero""",
    ),
)
