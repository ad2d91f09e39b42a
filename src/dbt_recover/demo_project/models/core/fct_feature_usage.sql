select
    event_type,
    cast({{ dbt.date_trunc("month", "event_date") }} as date) as usage_month,
    count(*) as events,
    count(distinct account_id) as accounts,
    count(distinct user_id) as users
from {{ ref('stg_product_events') }}
group by event_type, cast({{ dbt.date_trunc("month", "event_date") }} as date)
