"""dbt-recover. Kept empty: dbt imports every module named dbt_* in its environment."""
