"""Options with which XLA compiles tiny networks, which take longer to compile than to run."""

import importlib.metadata

JAXLIB = tuple(int(part) for part in importlib.metadata.version('jaxlib').split('.')[:2])
# A step of ResNet-8 with them: 0.9 s of processor time to compile for 6.7 s without, 45 ms to run
# for 28 ms (jaxlib 0.10.2).
QUICK = ('--xla_llvm_disable_expensive_passes=true', '--xla_backend_optimization_level=0',
         '--xla_cpu_parallel_codegen_split_count=1')
if JAXLIB < (0, 11):  # which no longer has this option
    QUICK += ('--xla_cpu_use_fusion_emitters=false',)
# `compiler_options` for large programs of float64, whose convolutions are loops of XLA's own: with
# these they run 13 times as fast.
FLOAT64 = {'xla_backend_optimization_level': 1}


def quick(devices: int) -> str:
    """The value of XLA_FLAGS for that many simulated devices."""
    return ' '.join([f'--xla_force_host_platform_device_count={devices}', *QUICK])
