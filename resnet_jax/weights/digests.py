"""Digests of arrays, which detect any change since they were written.

The digest of an array is the sum over its elements of bits(x_i) * weight(i) modulo 2**64, where
i is the position in the whole array and every weight is odd. Any change to a single element
therefore changes the digest. Because it is a sum, it does not depend on how an array is sharded.
"""

import hashlib
import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

BLOCK = 1 << 15  # elements at a time: the weights of a block stay in the cache


def digests(tree: Any) -> dict[str, str]:
    """The digest of every array of a tree, by its path.

    With arrays that are spread over several processes it must be called by all of them.

    Args:
      tree: of arrays of the host or of devices, of any numeric dtype.

    Returns:
      Such as {'params/head/bias': 'float32[10] 00f3a1…'}: dtype, shape and sum.
    """
    named = by_path(tree)
    sums = np.array([_local_sum(leaf) for leaf in named.values()], np.uint64)
    spread = np.array([isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
                       for leaf in named.values()], bool)
    if spread.any():
        # As halves, since JAX has no 64-bit integers by default.
        with jax.transfer_guard('allow'):
            halves = multihost_utils.process_allgather(sums.view(np.uint32))
        everywhere = np.ascontiguousarray(halves).view(np.uint64).sum(0, dtype=np.uint64)
        sums = np.where(spread, everywhere, sums)
    return {name: f'{description(leaf)} {total:016x}'
            for (name, leaf), total in zip(named.items(), sums.tolist(), strict=True)}


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths, such as 'params/stage1/block1/conv1/kernel'."""
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf
            for path, leaf in jax.tree.leaves_with_path(tree)}


def description(leaf: Any) -> str:
    """The dtype and shape of an array or `jax.ShapeDtypeStruct`, such as 'float32[3,3,16,16]'."""
    return f'{np.dtype(leaf.dtype).name}[{",".join(map(str, leaf.shape))}]'


def checksum(content: Any) -> str:
    """Computes the checksum of a JSON value; the order of keys has no effect."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _local_sum(leaf: Any) -> int:
    """The sum over what this process holds of an array; replicas count once."""
    strides = np.cumprod([1, *leaf.shape[:0:-1]], dtype=np.int64)[::-1].tolist()
    if not isinstance(leaf, jax.Array):
        return _sum(_bits(np.asarray(leaf)), 0, strides)
    total = 0
    for shard in leaf.addressable_shards:
        if shard.replica_id == 0:
            first = sum((part.start or 0) * stride
                        for part, stride in zip(shard.index, strides, strict=False))
            total += _sum(_bits(np.asarray(shard.data)), first, strides)
    return total % 2**64


def _bits(array: np.ndarray) -> np.ndarray:
    array = np.atleast_1d(array)
    return array.view(f'u{array.dtype.itemsize}')


def _sum(bits: np.ndarray, first: int, strides: list[int]) -> int:
    """The weighted sum of a part of an array, in blocks.

    Args:
      bits: unsigned integers.
      first: position of the first of them in the whole array.
      strides: of the whole array, in elements, for each dimension of the part.
    """
    if bits.size <= BLOCK:
        positions = np.full(1, first, np.uint64)
        for size, stride in zip(bits.shape, strides, strict=True):
            positions = positions[..., None] + np.arange(0, size * stride, stride, np.uint64)
        weights = positions[0] * np.uint64(0x9E3779B97F4A7C15)
        # Weights in arithmetic progression would not see all exchanges of elements.
        weights ^= weights >> np.uint64(29)
        weights |= np.uint64(1)
        return int(np.sum(weights * bits, dtype=np.uint64))
    total, rows = 0, BLOCK // (bits.size // len(bits))
    for start in range(0, len(bits), max(rows, 1)):
        place = first + start * strides[0]
        if rows:
            total += _sum(bits[start:start + rows], place, strides)
        else:
            total += _sum(bits[start], place, strides[1:])
    return total % 2**64
