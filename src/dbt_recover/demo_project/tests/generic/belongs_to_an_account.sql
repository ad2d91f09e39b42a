{# `relationships` to stg_accounts. It takes no arguments in YAML, because dbt 1.10 changed how
   they are written: this way the project reads the same on every version. #}
{% test belongs_to_an_account(model, column_name) %}
{{ dbt.test_relationships(model, column_name, ref('stg_accounts'), 'account_id') }}
{% endtest %}
