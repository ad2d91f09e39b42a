{# The day the pipeline runs for. Nothing reads the clock, so a run can be repeated. #}
{% macro run_date() %}cast('{{ var("run_date", "2026-01-31") }}' as date){% endmacro %}
