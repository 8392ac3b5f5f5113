"""The script for Slurm, with a made-up Slurm: what it calls, and when it queues its job again."""

import os
import subprocess
from pathlib import Path

import pytest

import kdlib.run

SCRIPT = Path(kdlib.run.__file__).with_name("slurm.sbatch")


@pytest.mark.skipif(os.name == "nt", reason="a script of bash")
@pytest.mark.parametrize("status", [0, 1, 3, 130])
@pytest.mark.parametrize(
    ("job", "name"),
    [
        ({"SLURM_JOB_ID": "7"}, "7"),
        ({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}, "7_2"),
    ],
)
def test_a_job_is_queued_again_when_its_time_is_up_and_not_otherwise(tmp_path, status, job, name):
    log = tmp_path / "log"
    for command, code in (("srun", status), ("scontrol", 0)):
        (tmp_path / command).write_text(f'#!/bin/sh\necho {command} "$@" >> {log}\nexit {code}\n')
        (tmp_path / command).chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", **job}
    done = subprocess.run(["bash", SCRIPT, "run", "grid", "--store", "a b"], env=env, capture_output=True, timeout=60)
    assert done.returncode == status, done.stderr
    requeued = [f"scontrol requeue {name}"] if status == 3 else []
    assert log.read_text().splitlines() == ["srun --ntasks=1 kd run grid --store a b", *requeued]
