select
    account_id,
    count(*) as invoices,
    sum(amount) as invoiced,
    sum(case when paid_on is null then amount else 0 end) as outstanding,
    max({{ dbt.datediff("issued_on", "coalesce(paid_on, " ~ run_date() ~ ")", "day") }})
        as slowest_payment_days
from {{ ref('stg_invoices') }}
group by account_id
