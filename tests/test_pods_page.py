"""The script for SLURM in docs/pods.md, with commands of SLURM that only note how they are called.
"""

import os
import pathlib
import re
import subprocess

import pytest

PAGE = pathlib.Path(__file__).parent.parent / 'docs' / 'pods.md'


def run(folder: pathlib.Path, srun: str, restarts: int | None = None) -> tuple[int, list[str]]:
    """Runs the script in a folder; returns its status and the calls of srun and scontrol."""
    script = re.search(r"^cat > r152.sbatch <<'EOF'\n(.*?)^EOF$", PAGE.read_text(), re.M | re.S)[1]
    programs = folder / 'bin'
    programs.mkdir()
    for name, body in (('srun', f'echo srun >> calls; {srun}'),
                       ('scontrol', 'echo scontrol "$@" >> calls')):
        (programs / name).write_text(f'#!/bin/sh\n{body}\n')
        (programs / name).chmod(0o755)
    (folder / 'calls').touch()
    restarted = {} if restarts is None else {'SLURM_RESTART_COUNT': str(restarts)}
    process = subprocess.run(['bash', '-c', script], cwd=folder, check=False, env=os.environ | {
        'PATH': f'{programs}:{os.environ["PATH"]}', 'SLURM_JOB_ID': '7',
        'SLURM_CPUS_PER_TASK': '12'} | restarted)
    return process.returncode, (folder / 'calls').read_text().splitlines()


@pytest.mark.parametrize(('status', 'restarts', 'is_requeued'), [
    (0, None, False), (1, None, False), (134, None, True), (143, 19, True), (137, 20, False)])
def test_a_job_of_slurm_is_requeued_after_a_loss_and_at_its_limit_at_most_20_times(
        tmp_path, status, restarts, is_requeued):
    assert run(tmp_path, f'exit {status}', restarts) == (
        status, ['srun', *['scontrol requeue 7'] * is_requeued])


def test_it_is_not_requeued_when_asked_to_stop(tmp_path):
    assert run(tmp_path, 'touch r152.stop; exit 143') == (143, ['srun'])


def test_it_does_not_start_when_asked_to_stop_while_it_waits(tmp_path):
    (tmp_path / 'r152.stop').touch()
    assert run(tmp_path, 'exit 0') == (0, [])
