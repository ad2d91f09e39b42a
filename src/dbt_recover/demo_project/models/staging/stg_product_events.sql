select
    event_id,
    account_id,
    user_id,
    event_type,
    cast(event_at as timestamp) as event_at,
    cast(cast(event_at as timestamp) as date) as event_date
from {{ ref('raw_product_events') }}
where cast(cast(event_at as timestamp) as date) <= {{ run_date() }}
