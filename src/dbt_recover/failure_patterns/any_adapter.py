"""Of any adapter: SQLSTATE, where it is passed on, and dbt's own words."""

from .entry import CODE, DATA, PERMISSION, TRANSIENT, Pattern

PATTERNS = (
    Pattern(
        PERMISSION,
        ("*",),
        sqlstate="42501",
        source="https://www.postgresql.org/docs/current/errcodes-appendix.html",
        sample="""\
Database Error in model orders (models/orders.sql)
  003041 (42501): SQL access control error:
  Missing privileges on table""",
    ),
    Pattern(
        CODE,
        ("*",),
        sqlstate="42601",
        source="https://www.postgresql.org/docs/current/errcodes-appendix.html",
        sample="""\
Database Error in model orders (models/orders.sql)
  002141 (42601): SQL compilation error:
  Unknown user-defined function ORDERS_OF""",
    ),
    Pattern(
        CODE,
        ("*",),
        sqlstate="42P01",
        source="https://docs.databricks.com/gcp/error-messages",
        sample="""\
Database Error in model orders (models/orders.sql)
  [VIEW_NOT_FOUND] The view `orders_of` cannot be found. SQLSTATE: 42P01""",
    ),
    Pattern(
        CODE,
        ("*",),
        sqlstate="42703",
        source="https://docs.databricks.com/error-messages/unresolved-column-error-class.html",
        sample="""\
Database Error in model orders (models/orders.sql)
  [UNRESOLVED_FIELD] A field with name `totl` cannot be resolved. SQLSTATE: 42703""",
    ),
    Pattern(
        CODE,
        ("*",),
        sqlstate="42S02",
        source="https://docs.snowflake.com/en/sql-reference/ddl-table",
        sample="""\
Database Error in model orders (models/orders.sql)
  002043 (42S02): SQL compilation error:
  Object does not exist, or operation cannot be performed.""",
    ),
    Pattern(
        DATA,
        ("*",),
        sqlstate="22018",
        source="https://docs.databricks.com/aws/en/error-messages/sqlstates",
        sample="""\
Database Error in model orders (models/orders.sql)
  100037 (22018): Boolean value 'perhaps' is not recognized""",
    ),
    Pattern(
        DATA,
        ("*",),
        sqlstate="22007",
        source="https://www.postgresql.org/docs/current/errcodes-appendix.html",
        sample="""\
Database Error in model orders (models/orders.sql)
  100040 (22007): Date '31.01.2026' is not recognized""",
    ),
    Pattern(
        DATA,
        ("*",),
        sqlstate="22012",
        source="https://www.postgresql.org/docs/current/errcodes-appendix.html",
        sample="""\
Database Error in model orders (models/orders.sql)
  [REMAINDER_BY_ZERO] Remainder by zero. SQLSTATE: 22012""",
    ),
    Pattern(
        TRANSIENT,
        ("*",),
        sqlstate="40001",
        source="https://www.postgresql.org/docs/current/errcodes-appendix.html",
        sample="""\
Database Error in model orders (models/orders.sql)
  [CONCURRENT_WRITE] The transaction was rolled back. SQLSTATE: 40001""",
    ),
    Pattern(
        CODE,
        ("*",),
        prefix="dbt:Compilation",
        source="https://docs.getdbt.com/guides/debug-errors",
        sample="""\
Compilation Error in model orders (models/orders.sql)
  'order_columns' is undefined. This can happen when calling a macro that does not exist.""",
    ),
)
