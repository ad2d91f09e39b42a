{# `accepted_values`, for the same reason without arguments in YAML. #}
{% test is_a_known_event_type(model, column_name) %}
{{ dbt.test_accepted_values(model, column_name, ['login', 'report_viewed', 'report_created', 'export', 'user_invited', 'api_call']) }}
{% endtest %}
