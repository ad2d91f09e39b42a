{# By updated_at of the CRM, not by comparing columns: the history then holds the CRM's own times,
   and a snapshot taken again is the same snapshot. #}
{% snapshot accounts_snapshot %}

{{ config(
    target_schema=target.schema,
    unique_key='account_id',
    strategy='timestamp',
    updated_at='updated_at'
) }}

select * from {{ ref('stg_accounts') }}

{% endsnapshot %}
