"""The script for SLURM in docs/pods.md, with commands of SLURM that only note how they are called.
"""

import os
import pathlib
import re
import subprocess

import pytest

PAGE = pathlib.Path(__file__).parent.parent / 'docs' / 'pods.md'


@pytest.mark.parametrize(('status', 'is_asked_to_stop', 'restarts', 'is_requeued'), [
    (0, False, None, False), (1, False, None, False), (134, False, None, True),
    (143, False, 19, True), (143, True, None, False), (137, False, 20, False)])
def test_a_job_of_slurm_is_requeued_after_a_loss_and_at_its_limit_but_not_when_asked_to_stop(
        tmp_path, status, is_asked_to_stop, restarts, is_requeued):
    script = re.search(r"^cat > r152.sbatch <<'EOF'\n(.*?)^EOF$", PAGE.read_text(), re.M | re.S)[1]
    programs = tmp_path / 'bin'
    programs.mkdir()
    stop = 'touch r152.stop\n' if is_asked_to_stop else ''
    for name, body in (('srun', f'{stop}exit {status}'), ('scontrol', 'echo "$@" > requeued')):
        (programs / name).write_text(f'#!/bin/sh\n{body}\n')
        (programs / name).chmod(0o755)
    (tmp_path / 'r152.stop').touch()  # left by an earlier job
    restarted = {} if restarts is None else {'SLURM_RESTART_COUNT': str(restarts)}
    process = subprocess.run(['bash', '-c', script], cwd=tmp_path, check=False, env=os.environ | {
        'PATH': f'{programs}:{os.environ["PATH"]}', 'SLURM_JOB_ID': '7',
        'SLURM_CPUS_PER_TASK': '12'} | restarted)
    assert process.returncode == status
    requeued = tmp_path / 'requeued'
    assert requeued.exists() == is_requeued
    assert not is_requeued or requeued.read_text() == 'requeue 7\n'
