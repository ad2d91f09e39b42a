"""The names that Airflow 2 and 3 keep in different places, for the DAGs beside this file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow import __version__
from airflow.providers.common.sql.sensors.sql import SqlSensor
from airflow.timetables.interval import CronDataIntervalTimetable

HAS_APPROVALS = tuple(int(part) for part in __version__.split(".")[:2]) >= (3, 1)
"""Whether a task can wait for a person's approval. On Airflow 2 that import raises."""

# mypy reads Airflow 3's.
if TYPE_CHECKING:
    from airflow.providers.standard.operators.hitl import ApprovalOperator
    from airflow.sdk import DAG, BaseOperator, Param, TaskGroup, task
    from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException
else:
    try:
        from airflow.sdk import DAG, BaseOperator, Param, TaskGroup, task
        from airflow.sdk.exceptions import (
            AirflowException,
            AirflowFailException,
            AirflowSkipException,
        )
    except ImportError:
        from airflow.decorators import task
        from airflow.exceptions import AirflowException, AirflowFailException, AirflowSkipException
        from airflow.models.baseoperator import BaseOperator
        from airflow.models.dag import DAG
        from airflow.models.param import Param
        from airflow.utils.task_group import TaskGroup

    ApprovalOperator: Any = None
    if HAS_APPROVALS:
        from airflow.providers.standard.operators.hitl import ApprovalOperator

__all__ = [
    "DAG",
    "HAS_APPROVALS",
    "AirflowException",
    "AirflowFailException",
    "AirflowSkipException",
    "ApprovalOperator",
    "BaseOperator",
    "CronDataIntervalTimetable",
    "Param",
    "SqlSensor",
    "TaskGroup",
    "task",
]
