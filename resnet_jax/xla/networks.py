"""How long collectives take, by the published bandwidths of what links the devices."""

import dataclasses
from collections.abc import Iterable, Mapping

from resnet_jax.xla.hlo import OVER_DCN

# Bytes that pass through a device for each byte of the whole array: an all-reduce is a
# reduce-scatter and an all-gather, and in an all-to-all chunks go half way round on average.
PASSES = {'all-reduce': 2, 'all-to-all': 0.25, 'ragged-all-to-all': 0.25}


@dataclasses.dataclass(frozen=True)
class Level:
    """Devices, or groups of them, that are linked alike.

    Attributes:
      size: how many.
      bandwidth: bytes per second that one device sends while all of them do.
      latency: seconds that a single byte takes to reach all of them.
    """

    size: int
    bandwidth: float
    latency: float = 0.0


def seconds(kind: str, count: int, size: float, levels: Iterable[Level]) -> float:
    """Computes the time that collectives over all devices take, one after another.

    A reduce-scatter or an all-gather of V bytes over N devices that send W bytes per second takes
    (N - 1) / N * V / W on a ring, a torus or a switch, and at least the latency. On a torus of
    several dimensions, each takes a share of the bytes, and W is the sum over the dimensions. Where
    there are several levels, the innermost reduces first, so that of N devices each has V / N bytes
    left for the next one. J. Austin et al., "How to Scale Your Model", 2025, 'Sharded matrices' and
    'GPUs'; R. Thakur et al., "Optimization of Collective Communication Operations in MPICH", 2005.

    What links the devices is taken to be used without loss, and a collective over a few of the
    devices counts as one over all of them.

    Args:
      kind: such as 'all-reduce'.
      count: how many there are.
      size: bytes of all their results on one device.
      levels: what links the devices, from the inside out.
    """
    total, levels = 0.0, tuple(levels)
    if kind == 'reduce-scatter':  # whose result is the share of one device
        for level in levels:
            size *= level.size
    for level in levels:
        share = (level.size - 1) / level.size * size / level.bandwidth
        total += PASSES.get(kind, 1) * max(count * level.latency, share)
        size /= level.size
    return total


def total_seconds(collectives: Mapping[str, Mapping[str, int]], levels: Iterable[Level]) -> float:
    """The sum of `seconds` over kinds of collectives, each with 'count' and 'bytes'.

    In a program that was compiled for several slices, those between slices use the outermost level
    alone, and all others stay below it.

    Args:
      collectives: see `hlo.collectives`.
      levels: see `seconds`.
    """
    levels = tuple(levels)
    inner = levels[:-1] if any(kind.endswith(OVER_DCN) for kind in collectives) else levels
    return sum(seconds(kind.removesuffix(OVER_DCN), total['count'], total['bytes'],
                       levels[-1:] if kind.endswith(OVER_DCN) else inner)
               for kind, total in collectives.items())
