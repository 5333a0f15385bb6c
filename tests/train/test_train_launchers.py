"""`gratis train` that something else starts several times: one line, not as many equal
trainings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small import ROOT

from gratis.errors import GratisError
from gratis.train.launcher.checks import check_launcher

# what each of them sets for one of two copies on a machine, beside much else
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "PMIX_RANK": "1"}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2"}
KUBEFLOW = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "train-master-0"}
STARTED_TWICE = [
    ("torchrun", TORCHRUN),
    ("srun", SRUN),
    ("mpirun", OPEN_MPI),
    ("mpirun", MPICH),
    ("a launcher of distributed programs", KUBEFLOW),
]


@pytest.mark.parametrize(("name", "environment"), STARTED_TWICE)
def test_more_copies_than_machines_are_refused(name: str, environment: dict[str, str]) -> None:
    with pytest.raises(GratisError, match=f"^{name} started gratis train 2 times .*once .*unset "):
        check_launcher(1, environment)


@pytest.mark.parametrize(("name", "environment"), STARTED_TWICE)
def test_a_copy_for_each_machine_is_right(name: str, environment: dict[str, str]) -> None:
    """As docker/slurm.sbatch does: --nnodes says that there are several."""
    check_launcher(2, environment)
    check_launcher(4, environment)  # --nnodes 1:4


@pytest.mark.parametrize(
    "environment",
    [
        {},
        TORCHRUN | {"WORLD_SIZE": "1"},
        # a batch script with --ntasks-per-node=4, which runs once
        {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_PROCID": "0"},
        {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},  # salloc's shell
        {"WORLD_SIZE": "8"},  # somebody's own variable
    ],
)
def test_one_copy_is_right(environment: dict[str, str]) -> None:
    check_launcher(1, environment)


@pytest.mark.starts
def test_torchrun_is_one_line_of_each_copy_and_no_run(tmp_path: Path) -> None:
    torchrun = "-m torch.distributed.run --standalone --nproc-per-node 2 -m gratis train".split()
    done = subprocess.run(
        [sys.executable, *torchrun, "--runs", str(tmp_path / "runs")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    ours = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert 1 <= len(ours) <= 2  # torchrun ends the other copy when one has ended
    assert all("torchrun started gratis train 2 times (WORLD_SIZE)" in line for line in ours)
    assert "exitcode  : 2" in done.stderr  # torchrun's own table of what failed first
    assert not (tmp_path / "runs").exists()
