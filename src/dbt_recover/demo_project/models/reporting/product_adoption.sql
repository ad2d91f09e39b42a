select
    event_type,
    sum(events) as events,
    max(accounts) as most_accounts_in_a_month,
    max(users) as most_users_in_a_month
from {{ ref('fct_feature_usage') }}
group by event_type
