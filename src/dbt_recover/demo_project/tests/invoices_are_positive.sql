select invoice_id, amount
from {{ ref('stg_invoices') }}
where amount <= 0
