"""Of PostgreSQL and Redshift."""

from .entry import CODE, DATA, PERMISSION, QUOTA, TIMEOUT, TRANSIENT, Pattern

PATTERNS = (
    Pattern(
        TRANSIENT,
        ("postgres", "redshift"),
        text="^deadlock detected$",
        source="https://github.com/postgres/postgres/blob/master/src/backend/storage/lmgr/deadlock.c",
        sample="""\
Database Error in model orders (models/orders.sql)
  deadlock detected
  DETAIL:  Process 1210 waits for AccessExclusiveLock on relation 16454 of database 16384; blocked by process 1214.
  Process 1214 waits for AccessExclusiveLock on relation 16450 of database 16384; blocked by process 1210.
  HINT:  See server log for query details.""",
    ),
    Pattern(
        TRANSIENT,
        ("postgres", "redshift"),
        text="^could not serialize access due to ",
        source="https://www.postgresql.org/docs/current/transaction-iso.html",
        sample="""\
Database Error in model orders (models/orders.sql)
  could not serialize access due to concurrent update""",
    ),
    Pattern(
        TRANSIENT,
        ("redshift",),
        text="Serializable isolation violation on table",
        source="https://github.com/snowplow/snowplow-rdb-loader/issues/557",
        sample="""\
Database Error in model orders (models/orders.sql)
  1023
  DETAIL:  Serializable isolation violation on table - 100167, transactions forming the cycle are: 55705701, 55705754 (pid:16606)""",
    ),
    Pattern(
        TRANSIENT,
        ("redshift",),
        text="^BrokenPipe: server socket closed",
        source="https://github.com/dbt-labs/dbt-core/issues/9330",
        sample="""\
Runtime Error in model orders (models/orders.sql)
  BrokenPipe: server socket closed. Please check that client side networking configurations such as Proxies, firewalls, VPN, etc. are not affecting your network connection.""",
    ),
    Pattern(
        TRANSIENT,
        ("postgres", "redshift"),
        text="^terminating connection due to (?:administrator command|conflict with recovery)|^terminating connection because of crash of another server process",
        source="https://github.com/postgres/postgres/blob/master/src/backend/tcop/postgres.c",
        sample="""\
Database Error in model orders (models/orders.sql)
  terminating connection due to administrator command
  SSL connection has been closed unexpectedly""",
    ),
    Pattern(
        TRANSIENT,
        ("postgres", "redshift"),
        text="^(?:server closed the connection unexpectedly|SSL connection has been closed unexpectedly|SSL SYSCALL error: )",
        source="https://github.com/dbt-labs/dbt-core/issues/2543",
        sample="""\
Database Error in model orders (models/orders.sql)
  server closed the connection unexpectedly
  \tThis probably means the server terminated abnormally
  \tbefore or while processing the request.
  compiled SQL at target/run/shop/models/orders.sql""",
    ),
    Pattern(
        TRANSIENT,
        ("postgres", "redshift"),
        text="^connection (?:to server .* )?failed: (?:Connection (?:refused|timed out|reset by peer)|could not receive data|server closed)",
        source="https://www.postgresql.org/docs/current/libpq-connect.html",
        sample="""\
Database Error in model orders (models/orders.sql)
  connection to server at "localhost" (127.0.0.1), port 5432 failed: Connection refused
  \tIs the server running on that host and accepting TCP/IP connections?""",
    ),
    Pattern(
        TRANSIENT,
        ("postgres", "redshift"),
        text="(?:sorry, too many clients already|remaining connection slots are reserved|the database system is (?:starting up|shutting down|in recovery mode))",
        source="https://www.postgresql.org/docs/current/server-start.html",
        sample="""\
Database Error in model orders (models/orders.sql)
  connection to server at "localhost" (127.0.0.1), port 5432 failed: FATAL:  sorry, too many clients already""",
    ),
    Pattern(
        TIMEOUT,
        ("postgres", "redshift"),
        text="^canceling statement due to statement timeout",
        source="https://www.postgresql.org/docs/current/runtime-config-client.html",
        sample="""\
Database Error in model orders (models/orders.sql)
  canceling statement due to statement timeout
  compiled code at target/run/shop/models/orders.sql""",
    ),
    Pattern(
        TRANSIENT,
        ("postgres", "redshift"),
        text="^canceling statement due to (?:lock timeout|conflict with recovery)",
        source="https://www.postgresql.org/docs/current/runtime-config-client.html",
        sample="""\
Database Error in model orders (models/orders.sql)
  canceling statement due to lock timeout""",
    ),
    Pattern(
        PERMISSION,
        ("postgres", "redshift"),
        text="^(?:permission denied for |must be owner of )",
        source="https://www.postgresql.org/docs/current/ddl-priv.html",
        sample="""\
Database Error in model orders (models/orders.sql)
  permission denied for table raw_orders
  compiled code at target/run/shop/models/orders.sql""",
    ),
    Pattern(
        PERMISSION,
        ("postgres", "redshift"),
        text=r"password authentication failed for user|no pg_hba\.conf entry for host",
        source="https://www.postgresql.org/docs/current/client-authentication-problems.html",
        sample="""\
Database Error in model orders (models/orders.sql)
  connection to server at "localhost" (127.0.0.1), port 5432 failed: FATAL:  password authentication failed for user "transformer\"""",
    ),
    Pattern(
        QUOTA,
        ("postgres", "redshift"),
        text="No space left on device|^Disk Full$|temporary file size exceeds temp_file_limit",
        source="https://www.postgresql.org/docs/current/disk-full.html",
        sample="""\
Database Error in model orders (models/orders.sql)
  could not extend file "base/16384/16450": No space left on device
  HINT:  Check free disk space.""",
    ),
    Pattern(
        CODE,
        ("postgres", "redshift"),
        text='^(?:syntax error at or near |relation ".*" does not exist|column .* does not exist|function .* does not exist|schema ".*" does not exist|operator does not exist)',
        source="https://www.postgresql.org/docs/current/errcodes-appendix.html",
        sample="""\
Database Error in model orders (models/orders.sql)
  column "order_totl" does not exist
  LINE 7:     select order_totl from raw_orders
                     ^
  compiled code at target/run/shop/models/orders.sql""",
    ),
    Pattern(
        DATA,
        ("postgres", "redshift"),
        text='^(?:invalid input syntax for |division by zero|duplicate key value violates |null value in column |value too long for type |numeric field overflow|value ".*" is out of range for type|(?:integer|bigint) out of range|date/time field value out of range)',
        source="https://www.postgresql.org/docs/current/errcodes-appendix.html",
        sample="""\
Database Error in model orders (models/orders.sql)
  invalid input syntax for type integer: "2,388.00"
  compiled code at target/run/shop/models/orders.sql""",
    ),
    Pattern(
        DATA,
        ("redshift",),
        text=r"^Load into table '.*' failed\.",
        source="https://docs.aws.amazon.com/redshift/latest/dg/t_Troubleshooting_load_errors.html",
        sample="""\
Database Error in seed raw_orders (seeds/raw_orders.csv)
  Load into table 'raw_orders' failed.  Check 'stl_load_errors' system table for details.""",
    ),
)
