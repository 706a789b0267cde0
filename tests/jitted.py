"""Networks as one compiled program each; operation by operation takes several times as long."""

import functools

import jax


@functools.partial(jax.jit, static_argnums=0, static_argnames=('train', 'method', 'mutable'))
def apply(model, variables, *args, **options):
    """What `model.apply` returns."""
    return model.apply(variables, *args, **options)


@functools.partial(jax.jit, static_argnums=0, static_argnames=('train', 'method'))
def init(model, key, *args, **options):
    """What `model.init` returns."""
    return model.init(key, *args, **options)
