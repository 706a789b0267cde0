"""Compiled programs are kept on disk, so that the next process need not compile them again."""

import os

import jax


def use(folder: str) -> None:
    """Keeps compiled programs in a folder, or where the environment says; '' is nowhere."""
    if folder and 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
        jax.config.update('jax_compilation_cache_dir', os.path.expanduser(folder))
    # By default, only what took a second to compile: the many that take less add up.
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
