"""Named presets of XLA compiler options, for the field `xla_preset`.

XLA reads its options once, when JAX starts its first backend, so call `use` before that. Options
that the user has set in the environment take precedence. The preset 'cpu' only affects programs for
CPUs and is therefore the default.
"""

import importlib.metadata
import os
from collections.abc import MutableMapping
from typing import NamedTuple


class Flag(NamedTuple):
    """One option of a compiler.

    Attributes:
      text: as it is given, '--name=value'.
      reason: what it is for.
      effect: what was measured, and where; or 'not run'.
      before: the first version of jaxlib that no longer needs it.
    """

    text: str
    reason: str
    effect: str
    before: tuple[int, int] | None = None


class Preset(NamedTuple):
    """Options that go together.

    Attributes:
      variable: of the environment, that the compiler reads them from.
      flags: the options.
    """

    variable: str
    flags: tuple[Flag, ...]


PRESETS = {
    'none': Preset('XLA_FLAGS', ()),
    'cpu': Preset('XLA_FLAGS', (
        Flag('--xla_cpu_experimental_ynn_fusion_type='
             'LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE',
             'Convolutions are left to Eigen: YNNPACK runs them on one core only.',
             'ResNet-20, batch 128, two cores, jaxlib 0.10.2: 353 ms a step for 465 without (5 '
             'passes in turns).', before=(0, 11)),
    )),
    'gpu': Preset('XLA_FLAGS', (
        Flag('--xla_gpu_enable_latency_hiding_scheduler=true',
             'The all-reduces of gradients run while the backward pass goes on.', 'not run'),
        Flag('--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL',
             'Loops too become CUDA graphs: the scanned blocks, and the steps of steps_per_call. '
             'Small networks wait for the start of their kernels otherwise.', 'not run'),
    )),
    'tpu': Preset('LIBTPU_INIT_ARGS', (
        Flag('--xla_tpu_enable_data_parallel_all_reduce_opt=true',
             'The all-reduces of gradients run while the backward pass goes on.', 'not run'),
        Flag('--xla_tpu_data_parallel_opt_different_sized_ops=true',
             'The same, also for gradients of different sizes.', 'not run'),
    )),
}


def use(name: str, environment: MutableMapping[str, str] = os.environ) -> None:
    """Adds the options of a preset to the environment; JAX must not have started a backend yet.

    Args:
      name: one of PRESETS.
      environment: of this process. The options in it stay, behind those of the preset; of an option
        that is given twice, XLA takes the last.
    """
    variable, flags = PRESETS[name]
    jaxlib = tuple(int(part) for part in importlib.metadata.version('jaxlib').split('.')[:2])
    texts = [flag.text for flag in flags if flag.before is None or jaxlib < flag.before]
    if texts:
        environment[variable] = ' '.join([*texts, *environment.get(variable, '').split()])
