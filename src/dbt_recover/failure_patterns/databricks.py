"""Of Databricks and Spark."""

from .entry import CODE, DATA, PERMISSION, QUOTA, TIMEOUT, TRANSIENT, Pattern

PATTERNS = (
    Pattern(
        TRANSIENT,
        ("databricks", "spark"),
        text=r"\[DELTA_CONCURRENT_[A-Z_]+|\b(?:ConcurrentAppendException|ConcurrentDeleteReadException|MetadataChangedException|ProtocolChangedException)\b",
        source="https://github.com/flyway/flyway-community-db-support/issues/116",
        sample="""\
Database Error in model orders (models/orders.sql)
  [DELTA_CONCURRENT_APPEND] ConcurrentAppendException: Files were added to the root of the table by a concurrent update. Please try the operation again.""",
    ),
    Pattern(
        TRANSIENT,
        ("databricks", "spark"),
        text=r"\bTEMPORARILY_UNAVAILABLE\b|HTTP Response code: 503|too many 503 error responses",
        source="https://github.com/databricks/dbt-databricks/issues/767",
        sample="""\
Runtime Error in model orders (models/orders.sql)
  Runtime Error
    Query could not be scheduled: HTTP Response code: 503. Please try again later. SQLSTATE: XX000""",
    ),
    Pattern(
        TIMEOUT,
        ("databricks", "spark"),
        text=r"\bDEADLINE_EXCEEDED\b|Statement has timed out|Timed out: ",
        source="https://github.com/databricks/databricks-sql-python/issues/215",
        sample="""\
Database Error in model orders (models/orders.sql)
  DEADLINE_EXCEEDED: This operation took too long""",
    ),
    Pattern(
        PERMISSION,
        ("databricks", "spark"),
        text=r"\[INSUFFICIENT_PERMISSIONS\]|\bPERMISSION_DENIED\b",
        source="https://github.com/databricks/dbt-databricks/issues/838",
        sample="""\
Database Error in model orders (models/orders.sql)
  [INSUFFICIENT_PERMISSIONS] Insufficient privileges:
  User does not have USE CATALOG on Catalog 'system'. SQLSTATE: 42501""",
    ),
    Pattern(
        QUOTA,
        ("databricks", "spark"),
        text=r"\bRESOURCE_EXHAUSTED\b|\bQUOTA_EXCEEDED\b",
        source="https://docs.databricks.com/aws/en/resources/limits",
        sample="""\
Database Error in model orders (models/orders.sql)
  QUOTA_EXCEEDED: Cannot create 1 Table(s) in Metastore because the limit has been reached""",
    ),
    Pattern(
        CODE,
        ("databricks", "spark"),
        text=r"\[(?:TABLE_OR_VIEW_NOT_FOUND|PARSE_SYNTAX_ERROR|UNRESOLVED_COLUMN|UNRESOLVED_ROUTINE|SCHEMA_NOT_FOUND|DATATYPE_MISMATCH)\b",
        source="https://docs.databricks.com/gcp/error-messages",
        sample="""\
Database Error in model orders (models/orders.sql)
  [TABLE_OR_VIEW_NOT_FOUND] The table or view `does_not_exist` cannot be found. Verify the spelling and correctness of the schema and catalog.""",
    ),
    Pattern(
        DATA,
        ("databricks", "spark"),
        text=r"\[(?:CAST_INVALID_INPUT|CAST_OVERFLOW|DIVIDE_BY_ZERO|ARITHMETIC_OVERFLOW|CANNOT_PARSE_TIMESTAMP|DELTA_MULTIPLE_SOURCE_ROW_MATCHING_TARGET_ROW_IN_MERGE)\b",
        source="https://docs.databricks.com/aws/en/error-messages/cast-invalid-input-error-class",
        sample="""\
Database Error in model orders (models/orders.sql)
  [CAST_INVALID_INPUT] The value '2,388.00' of the type "STRING" cannot be cast to "DECIMAL(12,2)" because it is malformed. SQLSTATE: 22018""",
    ),
)
