select
    accounts.account_id,
    accounts.account_name,
    accounts.industry,
    accounts.country,
    accounts.account_owner,
    plans.plan_name,
    plans.seats_included,
    accounts.created_on,
    {{ dbt.datediff("accounts.created_on", run_date(), "day") }} as account_age_days
from {{ ref('stg_accounts') }} as accounts
left join {{ ref('stg_plans') }} as plans
    on accounts.plan_code = plans.plan_code
