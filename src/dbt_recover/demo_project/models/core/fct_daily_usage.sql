{{ config(materialized='incremental', unique_key=['account_id', 'usage_date']) }}

select
    account_id,
    event_date as usage_date,
    count(*) as events,
    count(distinct user_id) as active_users
from {{ ref('stg_product_events') }}
{% if is_incremental() %}
-- The last day is taken again: it was not over when it was loaded.
where event_date >= (select max(usage_date) from {{ this }})
{% endif %}
group by account_id, event_date
