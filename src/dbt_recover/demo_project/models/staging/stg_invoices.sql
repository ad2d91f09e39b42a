select
    invoice_id,
    account_id,
    cast(issued_on as date) as issued_on,
    cast(amount as decimal(12, 2)) as amount,
    cast(paid_on as date) as paid_on
from {{ ref('raw_invoices') }}
where cast(issued_on as date) <= {{ run_date() }}
