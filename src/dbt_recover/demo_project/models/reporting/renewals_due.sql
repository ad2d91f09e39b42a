select
    contracts.account_id,
    accounts.account_name,
    accounts.account_owner,
    contracts.contract_end,
    contracts.days_to_renewal,
    contracts.annual_value
from {{ ref('fct_contracts') }} as contracts
inner join {{ ref('dim_accounts') }} as accounts
    on contracts.account_id = accounts.account_id
where contracts.days_to_renewal between 0 and 90
