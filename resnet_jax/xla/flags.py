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
      text: '--name=value'.
      reason: what it does, and why.
      effect: what was measured, and where; or 'not run'.
      before: first version of jaxlib that no longer needs it.
    """

    text: str
    reason: str
    effect: str
    before: tuple[int, int] | None = None


class Preset(NamedTuple):
    """Options that go together.

    Attributes:
      variable: environment variable that the compiler reads.
      flags: the options.
    """

    variable: str
    flags: tuple[Flag, ...]


PRESETS = {
    'none': Preset('XLA_FLAGS', ()),
    'cpu': Preset('XLA_FLAGS', (
        Flag('--xla_cpu_experimental_ynn_fusion_type='
             'LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE',
             'Leaves convolutions to Eigen, because YNNPACK runs them on a single core.',
             '353 ms per step instead of 465 ms (ResNet-20, batch 128, two cores, jaxlib '
             '0.10.2, 5 alternating runs).', before=(0, 11)),
    )),
    'gpu': Preset('XLA_FLAGS', (
        Flag('--xla_gpu_enable_latency_hiding_scheduler=true',
             'Overlaps the all-reduces of gradients with the backward pass.', 'not run'),
        Flag('--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL',
             'Runs loops as CUDA graphs too: scanned blocks, and the steps of steps_per_call. '
             'Otherwise small networks spend their time launching kernels.', 'not run'),
    )),
    'tpu': Preset('LIBTPU_INIT_ARGS', (
        Flag('--xla_tpu_enable_data_parallel_all_reduce_opt=true',
             'Overlaps the all-reduces of gradients with the backward pass.', 'not run'),
        Flag('--xla_tpu_data_parallel_opt_different_sized_ops=true',
             'Does the same for gradients of different sizes.', 'not run'),
    )),
}


def use(name: str, environment: MutableMapping[str, str] = os.environ) -> None:
    """Adds the options of a preset to the environment; JAX must not have started a backend yet.

    Args:
      name: one of PRESETS.
      environment: of this process. Its options follow those of the preset: if an option is given
        twice, XLA uses the last.
    """
    variable, flags = PRESETS[name]
    jaxlib = tuple(int(part) for part in importlib.metadata.version('jaxlib').split('.')[:2])
    given = environment.get(variable, '').split()
    texts = [flag.text for flag in flags
             if (flag.before is None or jaxlib < flag.before) and flag.text not in given]
    if texts:
        environment[variable] = ' '.join([*texts, *given])
