-- The board reads MRR, finance reads contracts: they must be the same money.
select reported.monthly_recurring_revenue, contracted.monthly_value
from (
    select sum(monthly_recurring_revenue) as monthly_recurring_revenue
    from {{ ref('monthly_recurring_revenue') }}
) as reported
cross join (
    select sum(monthly_value) as monthly_value
    from {{ ref('fct_contracts') }}
    where is_running
) as contracted
where reported.monthly_recurring_revenue <> contracted.monthly_value
