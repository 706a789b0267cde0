"""ReLU whose gradient on GPUs is computed from its output."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


def relu(x: jax.Array) -> jax.Array:
    """ReLU for the end of an unrolled block; on GPU its gradient is computed from its output.

    XLA's own gradient would recompute the sum before the ReLU and read both summands, which costs
    memory traffic (docs/performance.md). Inside a loop, this version would store the output twice.
    """
    return lax.platform_dependent(x, cuda=_relu, rocm=_relu, default=nn.relu)


@jax.custom_vjp
def _relu(x):
    return jnp.maximum(x, 0)


def _forward(x):
    # Without the barrier, XLA knows that y > 0 where x > 0.
    y = lax.optimization_barrier(_relu(x))
    return y, y


def _backward(y, dy):
    return (jnp.where(y > 0, dy, 0),)


_relu.defvjp(_forward, _backward)
