with usage_per_account as (

    select
        account_id,
        sum(events) as events,
        max(active_users) as peak_active_users,
        max(usage_date) as last_seen_on
    from {{ ref('fct_daily_usage') }}
    group by account_id

)

select
    accounts.account_id,
    coalesce(usage_per_account.events, 0) as events,
    coalesce(usage_per_account.peak_active_users, 0) as peak_active_users,
    usage_per_account.last_seen_on,
    coalesce(payments.outstanding, 0) as outstanding,
    case
        when usage_per_account.last_seen_on is null then 'silent'
        when {{ dbt.datediff("usage_per_account.last_seen_on", run_date(), "day") }} > 14 then 'at risk'
        when coalesce(payments.outstanding, 0) > 0 then 'watch'
        else 'healthy'
    end as health
from {{ ref('dim_accounts') }} as accounts
left join usage_per_account
    on accounts.account_id = usage_per_account.account_id
left join {{ ref('fct_payments') }} as payments
    on accounts.account_id = payments.account_id
