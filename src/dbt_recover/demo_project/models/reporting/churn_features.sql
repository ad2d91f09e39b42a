select
    health.account_id,
    accounts.account_age_days,
    health.events,
    health.peak_active_users,
    accounts.seats_included,
    health.outstanding,
    contracts.days_to_renewal,
    contracts.monthly_value,
    case when health.health in ('silent', 'at risk') then 1 else 0 end as is_quiet
from {{ ref('account_health') }} as health
inner join {{ ref('dim_accounts') }} as accounts
    on health.account_id = accounts.account_id
left join {{ ref('fct_contracts') }} as contracts
    on health.account_id = contracts.account_id
