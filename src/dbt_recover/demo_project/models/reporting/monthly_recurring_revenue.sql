select
    plan_name,
    count(*) as accounts,
    sum(monthly_value) as monthly_recurring_revenue
from {{ ref('fct_contracts') }}
where is_running
group by plan_name
