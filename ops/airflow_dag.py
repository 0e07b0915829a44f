"""headstart retrain once a month, for Airflow 3: to be copied into its folder of DAGs.

The checkout is where the variable HEADSTART says, else ~/headstart of whom Airflow runs as. A round that skipped (10), kept
the champion (11) or met another one at work (75) shows as skipped; promoted is a success; refused (12) and failed (1) are
failures, which Airflow tells of as it is told to. A failure is not tried again by itself: the gate would say the same.
"""

import os
from datetime import datetime, timedelta
from pathlib import Path

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

with DAG(
    "headstart_retrain",
    schedule="0 3 1 * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    doc_md=__doc__,
) as dag:
    BashOperator(
        task_id="retrain",
        bash_command=".venv/bin/headstart retrain --json",
        cwd=str(Path(os.environ.get("HEADSTART", "~/headstart")).expanduser()),
        append_env=True,
        skip_on_exit_code=[10, 11, 75],
        retries=0,
        execution_timeout=timedelta(hours=12),
    )
