"""Rematerialisation: what is stored for the backward pass, and what is computed again.

T. Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016. Results do not change.
"""

from collections.abc import Callable

import flax.linen as nn
import jax

from resnet_jax.models.conv import CONV_OUTPUT

POLICIES = {
    'none': None,  # XLA chooses in straight-line code; a loop keeps whatever the gradient asks for
    'conv': jax.checkpoint_policies.save_only_these_names(CONV_OUTPUT),
    'block': jax.checkpoint_policies.nothing_saveable,
}


def remat(part: Callable, kind: str, in_loop: bool = False) -> Callable:
    """Makes the backward pass of a part of a network recompute its intermediate results.

    Args:
      part: (module, x) -> y, a function of a bound module.
      kind: 'none' returns the part unchanged; 'conv' stores the outputs of convolutions and
        recomputes normalisation, ReLU and pooling; 'block' stores only the input of the part.
      in_loop: whether the part is the body of a loop. Forward and backward pass are then separate
        loops, which the compiler cannot merge, so no barrier is needed.
    """
    if kind == 'none':
        return part
    return nn.remat(part, policy=POLICIES[kind], prevent_cse=not in_loop)
