select
    account_id,
    plan_code,
    cast(contract_start as date) as contract_start,
    cast(contract_end as date) as contract_end,
    cast(annual_value as decimal(12, 2)) as annual_value
from {{ ref('raw_crm_accounts') }}
where contract_start is not null
