"""`python -m experiments.sweep` on two cores, with the runs of fake_run.py."""

import pathlib
import sys

from experiments import grid, machine, runs, sweep
from resnet_jax import cli
from resnet_jax.distributed.cores import core_numbers

RUN = pathlib.Path(__file__).with_name('fake_run.py')


def fake_command(cell, workdir):
    return [sys.executable, str(RUN), *cell.arguments, f'--workdir={workdir / cell.name}']


def install(patch=setattr) -> None:
    """Puts the stand-ins in; configs are not checked, and all steps cost the same."""
    patch(runs, 'command', fake_command)
    patch(machine, 'look', lambda: machine.Machine(
        'cpu', 'a processor', 1, core_numbers()[:1] * 2))
    patch(grid, 'check', lambda cells, num_devices: None)
    patch(runs, 'step_costs', lambda cells: {cell.name: 1 for cell in cells})


if __name__ == '__main__':
    install()
    cli.run(sweep.main)
