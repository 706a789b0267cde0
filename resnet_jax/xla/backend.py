"""Starts JAX on the requested platform, with compilation enabled and in 32 bits."""

import functools
from collections.abc import Callable

import jax

from resnet_jax.errors import UserError


def devices() -> list[jax.Device]:
    """All devices, of all processes; starts JAX.

    Raises:
      UserError: JAX_PLATFORMS names a platform that is missing, or JAX_DISABLE_JIT is set.
    """
    if jax.config.jax_disable_jit:
        raise UserError('JAX_DISABLE_JIT is set, and training and evaluation need jit; unset '
                        'JAX_DISABLE_JIT.')
    try:
        return jax.devices()
    except (AssertionError, RuntimeError) as error:  # jax asserts that some backend has started
        platforms = jax.config.jax_platforms
        if not platforms:
            raise
        raise UserError(f'JAX_PLATFORMS={platforms}, but JAX finds no {platforms} device on this '
                        'machine; unset JAX_PLATFORMS to use the devices that it finds.') from error


def in_32_bits(function: Callable) -> Callable:
    """The function, run without 64-bit types whatever JAX_ENABLE_X64 says.

    What a config computes must not depend on it, and random numbers and labels of 64 bits would
    change every result.
    """
    @functools.wraps(function)
    def run(*args, **kwargs):
        with jax.enable_x64(False):
            return function(*args, **kwargs)

    return run
