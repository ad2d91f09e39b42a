select
    accounts.account_owner,
    accounts.country,
    health.health,
    count(*) as accounts,
    sum(coalesce(contracts.annual_value, 0)) as annual_value,
    sum(health.outstanding) as outstanding
from {{ ref('dim_accounts') }} as accounts
inner join {{ ref('account_health') }} as health
    on accounts.account_id = health.account_id
left join {{ ref('fct_contracts') }} as contracts
    on accounts.account_id = contracts.account_id
group by accounts.account_owner, accounts.country, health.health
