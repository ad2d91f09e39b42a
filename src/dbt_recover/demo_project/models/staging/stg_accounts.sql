select
    account_id,
    account_name,
    industry,
    country,
    plan_code,
    account_owner,
    cast(created_on as date) as created_on,
    cast(updated_at as timestamp) as updated_at
from {{ ref('raw_crm_accounts') }}
