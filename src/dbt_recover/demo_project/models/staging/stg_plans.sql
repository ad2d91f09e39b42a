{{ config(materialized='view') }}

select
    plan_code,
    plan_name,
    cast(seats_included as integer) as seats_included,
    cast(monthly_price as decimal(12, 2)) as monthly_price
from {{ ref('raw_plans') }}
