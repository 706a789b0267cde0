"""Prints the size and cost of the network of a config, without data and without running it.

  python -m resnet_jax.summary --config=configs/imagenet_r50.py --config.model.stride_in=v1.5

Reports parameters, multiply-adds per image (which the paper calls FLOPs), output shapes, and the
memory of parameters and optimizer state. --json prints the same as one JSON object.
"""

import json
from typing import Any

from absl import flags
from clu import parameter_overview

from resnet_jax import cli
from resnet_jax.training.costs import shapes, summarize

CONFIG = cli.config_flag()
JSON = cli.json_flag()
PARAMETERS = cli.flag(
    flags.DEFINE_bool, 'parameters', False, 'Also list every parameter array.')


def table(summary: dict[str, Any]) -> str:
    """Formats the summary as text."""
    lines = [f'{"part":<14} output of one image']
    lines += [f'{stage["name"]:<14} {" x ".join(map(str, stage["shape"]))}'
              for stage in summary['stages']]
    lines += ['', f'parameters     {summary["parameters"]:,}',
              f'multiply-adds  {summary["multiply_adds"]:,}']
    lines += [f'  {name:<12} {part["multiply_adds"]:,}{_runs(part)}'
              for name, part in summary['parts'].items()]
    lines += [f'memory         {size / 2**20:,.1f} MiB of {name.replace("_", " ")}'
              for name, size in summary['memory'].items()]
    return '\n'.join(lines)


def _runs(part: dict[str, int]) -> str:
    """How often a part of the network runs, where that is not once."""
    if part['train_runs'] == part['test_runs'] == 1:
        return ''
    return f' each, {part["test_runs"]:,} for an image; {part["train_runs"]:,} in training'


def main(_) -> None:
    config = CONFIG.value
    summary = summarize(config)
    if JSON.value:
        print(json.dumps(summary))
        return
    print(table(summary))
    if PARAMETERS.value:
        variables = shapes(config)[1]
        print(parameter_overview.get_parameter_overview(
            variables['params'], include_stats=False))


if __name__ == '__main__':
    cli.run(main, needs=['--config=FILE'])
