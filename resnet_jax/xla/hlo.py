"""Reads the loops and collectives of an optimised HLO module, the text of a compiled program.

XLA's own cost analysis counts the body of a loop once. Here every instruction is counted as often
as it runs, if the number of iterations is known at compile time.
"""

import collections
import dataclasses
import itertools
import math
import re
from collections.abc import Iterator

import numpy as np

COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute',
               'collective-broadcast', 'ragged-all-to-all')
# What libtpu makes of the part of a collective that crosses slices, over the network of the data
# center: the program of each slice sends to the host and receives from it.
BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
OVER_DCN = ' (DCN)'  # follows the name of its kind
# Instructions that give names to bytes and move none, or whose computations are counted instead.
FREE = ('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'conditional',
        'call', 'after-all', 'partition-id', 'replica-id')
HEADER = re.compile(r'(ENTRY )?%?([\w.-]+) \(.*\{$')
ASSIGNMENT = re.compile(r'\s+(?:ROOT )?%?([\w.-]+) = (.*)$')
ARRAY = re.compile(r'(\w+)\[([\d,]*)\]')
CALLEES = re.compile(r'\b(?:calls|to_apply|condition|body|branch_computations|called_computations|'
                     r'true_computation|false_computation)=(\{[^}]*\}|%?[\w.-]+)')


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
      name: unique in its computation.
      opcode: such as 'dot' or 'all-reduce'.
      arrays: type and shape of the result, or of its parts.
      arguments: what stands between the parentheses.
      attributes: what follows.
    """

    name: str
    opcode: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    arguments: str
    attributes: str

    @property
    def operands(self) -> list[str]:
        """Names of the instructions whose results go in."""
        return re.findall(r'%([\w.-]+)', self.arguments)

    @property
    def bytes(self) -> int:
        """The size of the result in bytes."""
        return sum(itertools.starmap(_bytes, self.arrays))


@dataclasses.dataclass(frozen=True)
class Module:
    """A module: the instructions of each computation, in order.

    Attributes:
      computations: by name.
      entry: name of the one that is run.
      runs: how often a computation runs when the module runs once.
      open_loops: while loops whose number of turns the text does not tell; they count as one turn.
    """

    computations: dict[str, list[Instruction]]
    entry: str
    runs: dict[str, int]
    open_loops: int


def parse(text: str) -> Module:
    """Reads a module.

    Args:
      text: as `jax.stages.Compiled.as_text` gives it.
    """
    computations, entry, current = {}, '', []
    for line in text.splitlines():
        if header := HEADER.match(line):
            current = computations[header[2]] = []
            entry = header[2] if header[1] else entry
        elif assignment := ASSIGNMENT.match(line):
            current.append(_instruction(*assignment.groups()))
    runs, open_loops = collections.Counter(), 0

    def visit(name: str, times: int) -> None:
        nonlocal open_loops
        runs[name] += times
        for instruction in computations[name]:
            turns = 1
            if instruction.opcode == 'while':
                turns = _turns(instruction, computations)
                open_loops += turns is None
            for callee in _callees(instruction):
                visit(callee, times * (turns or 1))

    visit(entry, 1)
    return Module(computations, entry, dict(runs), open_loops)


def collectives(module: Module) -> dict[str, dict[str, int]]:
    """How often each kind of collective runs, and the bytes that one device has from all of them.

    An asynchronous one is counted where it ends. Of those between slices, the names end with
    OVER_DCN, and the bytes are those of one device.
    """
    totals = {}
    for name, times in module.runs.items():
        for instruction in module.computations[name]:
            kind, size = instruction.opcode.removesuffix('-done'), instruction.bytes
            if instruction.opcode == 'recv' and (
                    crossing := BETWEEN_SLICES.search(instruction.attributes)):
                kind = crossing[1].lower().replace('_', '-') + OVER_DCN
                size = _bytes(*instruction.arrays[0])
            if kind in COLLECTIVES or kind.endswith(OVER_DCN):
                total = totals.setdefault(kind, {'count': 0, 'bytes': 0})
                total['count'] += times
                total['bytes'] += times * size
    return totals


def kernels(module: Module) -> Iterator[tuple[Instruction, int, int]]:
    """Lists the instructions that run as kernels of their own, that is, are not fused.

    Yields:
      The instruction, the bytes that go in and out of it, and how often it runs.
    """
    parts = {callee for instructions in module.computations.values()
             for instruction in instructions if instruction.opcode not in FREE
             for callee in _callees(instruction)}
    for name, times in module.runs.items():
        if name not in parts:
            known = {instruction.name: instruction for instruction in module.computations[name]}
            for instruction in known.values():
                if instruction.opcode not in FREE:
                    yield instruction, instruction.bytes + sum(
                        known[operand].bytes for operand in instruction.operands
                        if operand in known), times


def loop_factors(module: Module) -> tuple[float, float]:
    """By how much the loops multiply the FLOPs and bytes of a module whose every line ran once.

    FLOPs are weighed by the multiply-adds of matrix products and convolutions, bytes by what goes
    in and out of `kernels`.
    """
    flops = bytes_ = 0, 0  # every line once, and as often as it runs
    for name, times in module.runs.items():
        known = {instruction.name: instruction for instruction in module.computations[name]}
        work = sum(_multiply_adds(instruction, known) for instruction in known.values())
        flops = flops[0] + work, flops[1] + work * times
    for _, moved, times in kernels(module):
        bytes_ = bytes_[0] + moved, bytes_[1] + moved * times
    return flops[1] / max(flops[0], 1), bytes_[1] / max(bytes_[0], 1)


def _instruction(name: str, text: str) -> Instruction:
    """From 'f32[8,16]{1,0} dot(%a, %b), lhs_contracting_dims={1}'."""
    end = _closing(text) if text[0] == '(' else text.index(' ')
    opcode, _, rest = text[end:].strip().partition('(')
    arrays = tuple((kind, tuple(map(int, shape.split(','))) if shape else ())
                   for kind, shape in ARRAY.findall(text[:end]))
    end = _closing(rest, 1) - 1
    return Instruction(name, opcode, arrays, rest[:end], rest[end:])


def _closing(text: str, depth: int = 0) -> int:
    """The position after the parenthesis that closes the first one, or so many before the text."""
    for match in re.finditer(r'[()]', text):
        depth += 1 if match[0] == '(' else -1
        if depth == 0:
            return match.end()
    return len(text)


def _bytes(kind: str, shape: tuple[int, ...]) -> int:
    return _bits(kind) * math.prod(shape) // 8


def _bits(kind: str) -> int:
    """Of one number: 32 for 'f32', 8 for 'pred' and 'f8e4m3fn', 0 for 'token'."""
    number = re.search(r'\d+', kind)
    return int(number[0]) if number else 8 * (kind == 'pred')


def _callees(instruction: Instruction) -> Iterator[str]:
    """The computations that it runs; those of an asynchronous one belong to its start."""
    if instruction.opcode.endswith(('-done', '-update')):
        return
    for names in CALLEES.findall(instruction.attributes):
        yield from re.findall(r'[\w.-]+', names)


def _turns(loop: Instruction, computations: dict[str, list[Instruction]]) -> int | None:
    """How often a loop goes round, by the compiler's note or as a counter that starts at 0."""
    if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(noted[1])
    condition = computations[re.search(r'condition=%?([\w.-]+)', loop.attributes)[1]]
    bounds = [x.arguments for x in condition if x.opcode == 'constant']
    counts = any('direction=LT' in x.attributes for x in condition)
    return int(bounds[0]) if counts and len(bounds) == 1 and bounds[0].isdigit() else None


def _multiply_adds(instruction: Instruction, known: dict[str, Instruction]) -> int:
    """Of a matrix product or a convolution; 0 for all else."""
    if instruction.opcode not in ('dot', 'convolution'):
        return 0
    operands = [known[name].arrays[0][1] for name in instruction.operands]
    if instruction.opcode == 'dot':
        results = math.prod(instruction.arrays[0][1])
        contracted = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', instruction.attributes)[1]
        return results * math.prod(operands[0][int(axis)] for axis in contracted.split(',') if axis)
    return _of_convolution(instruction, *operands[:2])


def _of_convolution(instruction: Instruction, inputs: tuple[int, ...],
                    kernel: tuple[int, ...]) -> int:
    """The multiply-adds of a convolution, without those of padding and of dilation.

    On TPUs a batch of matrix products is a convolution that is dilated along the batch.
    """
    labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', instruction.attributes).groups()
    window = re.search(r'window={(.*?)}', instruction.attributes)
    fields = dict(re.findall(r'(\w+)=(\S+)', window[1])) if window else {}
    sizes = dict(zip(labels[2], instruction.arrays[0][1], strict=True))
    total = sizes['b'] * sizes['f'] * kernel[labels[1].index('i')]
    for axis in range(len(labels[1]) - 2):
        label = str(axis)
        stride, input_dilation, kernel_dilation = (
            int(fields[name].split('x')[axis]) if name in fields else 1
            for name in ('stride', 'lhs_dilate', 'rhs_dilate'))
        before = int(fields['pad'].split('x')[axis].split('_')[0]) if 'pad' in fields else 0
        place = (np.arange(sizes[label])[:, None] * stride - before
                 + np.arange(kernel[labels[1].index(label)]) * kernel_dilation)
        last = (inputs[labels[0].index(label)] - 1) * input_dilation
        total *= int(((place >= 0) & (place <= last) & (place % input_dilation == 0)).sum())
    return total
