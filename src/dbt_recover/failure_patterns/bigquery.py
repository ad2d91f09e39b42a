"""Of BigQuery."""

from .entry import CODE, DATA, PERMISSION, QUOTA, TIMEOUT, TRANSIENT, Pattern

PATTERNS = (
    Pattern(
        TIMEOUT,
        ("bigquery",),
        text="^Operation did not complete within the designated timeout",
        source="https://github.com/googleapis/python-api-core/blob/main/google/api_core/future/polling.py",
        sample="""\
Runtime Error in model orders (models/orders.sql)
  Operation did not complete within the designated timeout of 300 seconds.""",
    ),
    Pattern(
        TRANSIENT,
        ("bigquery",),
        text=r"\bexceeded rate limits\b",
        source="https://github.com/dlt-hub/dlt/issues/161",
        sample="""\
Database Error in model orders (models/orders.sql)
  Exceeded rate limits: too many table update operations for this table. For more information, see https://cloud.google.com/bigquery/docs/troubleshoot-quotas""",
    ),
    Pattern(
        TRANSIENT,
        ("bigquery",),
        text=r"^(?:50[0234] |.*\bbackendError\b|The job encountered an (?:internal error|error) during execution)",
        source="https://docs.cloud.google.com/bigquery/docs/error-messages",
        sample="""\
Runtime Error in model orders (models/orders.sql)
  503 GET https://bigquery.googleapis.com/bigquery/v2/projects/shop/queries/1?maxResults=0: Visibility check was unavailable. Please retry the request and contact support if the problem persists""",
    ),
    Pattern(
        TRANSIENT,
        ("bigquery",),
        text="^(?:Could not serialize access to table .* due to concurrent update|Transaction is aborted due to concurrent update)",
        source="https://cloud.google.com/bigquery/docs/data-manipulation-language",
        sample="""\
Database Error in model orders (models/orders.sql)
  Could not serialize access to table shop:dbt_prod.orders due to concurrent update""",
    ),
    Pattern(
        QUOTA,
        ("bigquery",),
        text=r"^(?:.*\b[Qq]uota exceeded\b|Query exceeded limit for bytes billed|Resources exceeded during query execution)",
        source="https://github.com/elementary-data/elementary/issues/382",
        sample="""\
Database Error in model dbt_models (models/edr/dbt_artifacts/dbt_models.sql)
  Quota exceeded: Your table exceeded quota for imports or query appends per table. For more information, see https://cloud.google.com/bigquery/docs/troubleshoot-quotas
  compiled Code at target/run/elementary/models/edr/dbt_artifacts/dbt_models.sql""",
    ),
    Pattern(
        PERMISSION,
        ("bigquery",),
        text="^(?:403 .*)?Access Denied: ",
        source="https://github.com/dbt-labs/docs.getdbt.com/pull/716",
        sample="""\
Database Error in model stg_datalocker__inapps (models/staging/appsflyer/inapps/stg_datalocker__inapps.sql)
  Access Denied: BigQuery BigQuery: Permission denied while globbing file pattern.
  compiled SQL at target/run/my_client/models/staging/appsflyer/inapps/stg_datalocker__inapps.sql""",
    ),
    Pattern(
        CODE,
        ("bigquery",),
        text="^(?:Syntax error: |Unrecognized name: |Not found: (?:Table|Dataset|Function) |No matching signature for |Function not found: )",
        source="https://docs.cloud.google.com/bigquery/docs/error-messages",
        sample="""\
Database Error in model orders (models/orders.sql)
  Unrecognized name: order_totl; Did you mean order_total? at [7:8]
  compiled code at target/run/shop/models/orders.sql""",
    ),
    Pattern(
        DATA,
        ("bigquery",),
        text="^(?:Bad (?:int64|double|bool|numeric) value: |Could not cast |Invalid (?:date|timestamp|datetime): |division by zero|UPDATE/MERGE must match at most one source row)",
        source="https://cloud.google.com/bigquery/docs/reference/standard-sql/dml-syntax",
        sample="""\
Database Error in model orders (models/orders.sql)
  UPDATE/MERGE must match at most one source row for each target row
  compiled code at target/run/shop/models/orders.sql""",
    ),
)
