"""dbt-recover. Next to nothing: dbt imports every module named dbt_* in its environment, looking for
plugins."""

from os import environ


def __getattr__(name: str) -> object:
    if name == "plugins" and "DBT_RECOVER_LOG" in environ:
        from .dbt_plugin import shorten

        return shorten()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
