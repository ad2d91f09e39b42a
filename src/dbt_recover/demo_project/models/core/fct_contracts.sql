select
    contracts.account_id,
    plans.plan_name,
    contracts.contract_start,
    contracts.contract_end,
    contracts.annual_value,
    cast(contracts.annual_value / 12 as decimal(12, 2)) as monthly_value,
    contracts.contract_start <= {{ run_date() }}
    and contracts.contract_end > {{ run_date() }} as is_running,
    {{ dbt.datediff(run_date(), "contracts.contract_end", "day") }} as days_to_renewal
from {{ ref('stg_contracts') }} as contracts
left join {{ ref('stg_plans') }} as plans
    on contracts.plan_code = plans.plan_code
