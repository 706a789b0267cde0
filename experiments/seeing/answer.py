"""The reviewer's question, answered from what was measured.

"If each block only adds to its input, does the representation stay near the input space, and how
then does it disentangle the classes?" The numbers decide which sentences are written.
"""

from collections.abc import Mapping

import numpy as np

from experiments.seeing import curves, similarity
from experiments.seeing.lesion import Lesions
from experiments.seeing.representation import Representation

QUESTION = ('If each block only adds to its input, does the representation stay near the input '
            'space, and how then does it disentangle the classes?')
NEAR = 0.8  # a cosine or CKA above it: the two are called near
FAR = 0.5  # and below it: far
CHANGE = 0.05  # of the share of the variance between the classes: less is called none
NOTICEABLE = 5.0  # points of error that the loss of a block may cost and still be called cheap


def answer(networks: Mapping[str, Representation], lesions: Mapping[str, Lesions]) -> list[str]:
    """Paragraphs of plain text: the first network alone, then the two side by side."""
    name, network = next(iter(networks.items()))
    paragraphs = [_nearness(name, network), _disentangling(network),
                  _dependence(name, lesions[name])]
    if len(networks) > 1:
        other = list(networks)[1]
        paragraphs += [_compared(networks, lesions), _dependence(other, lesions[other])]
    return paragraphs


def highlights(networks: Mapping[str, Representation], lesions: Mapping[str, Lesions],
               ) -> tuple[list[str], list[list]]:
    """The numbers behind the answer as a table: heads and rows, a column a network."""
    rows = {
        'cosine of a block\'s output and what it carries, median': lambda x, _:
            f'{np.median(x.output_cosine.mean(1)):.2f}',
        'norm of branch / norm of carried, median block': lambda x, _:
            f'{np.median(x.ratio.mean(1)):.2f}',
        'CKA of the last block with the pixels': lambda x, _: f'{x.cka[0, -1]:.2f}',
        'variance between classes: pixels → last block': lambda x, _:
            f'{x.share[0]:.2f} → {x.share[-1]:.2f}',
        'probe of the map: pixels → last block': lambda x, _:
            f'{x.probe_map[0]:.1f} → {x.probe_map[-1]:.1f} %',
        'probe of its average: stem → last block': lambda x, _:
            f'{x.probe_mean[1]:.1f} → {x.probe_mean[-1]:.1f} %',
        'top-1 error': lambda x, cut: f'{cut.whole:.2f} %',
        'top-1 error without the median block': lambda x, cut: f'{np.median(cut.deleted):.2f} %',
    }
    return (['measure', *networks],
            [[what, *(told(x, lesions[name]) for name, x in networks.items())]
             for what, told in rows.items()])


def _nearness(name: str, network: Representation) -> str:
    cosine = float(np.median(network.output_cosine.mean(1)))
    last, level = float(network.cka[0, -1]), similarity.chance(network)
    one = (f'The blocks of the {name} network stay near their inputs' if cosine > NEAR else
           f'The blocks of the {name} network turn their inputs moderately' if cosine > FAR else
           f'The blocks of the {name} network do not stay near their inputs')
    ratio = network.ratio.mean(1)
    all_of_it = (
        'the representation as a whole stays near the input space' if last > NEAR else
        'the representation as a whole moves away from the input space but keeps much of its '
        'geometry' if last > FAR else
        'the representation as a whole leaves the input space')
    joint = 'And' if (cosine > NEAR) == (last > NEAR) else 'Still'
    ends = ', '.join(f'{network.cka[0, i]:.2f}' for i in curves.ends(network.steps, network.blocks))
    return (f'{one}: the median block has a cosine of {cosine:.2f} between its output and what it '
            f'carries, and a branch {np.median(ratio):.2f} times as long as that. {joint} '
            f'{all_of_it}: the CKA with the pixels is {ends} at the ends of the stages (1 would be '
            f'the input itself, {level:.2f} images mixed up at random).')


def _disentangling(network: Representation) -> str:
    share, count = network.share, len(network.blocks)
    gains = np.diff(share[1:])  # of each block
    rises = np.sort(np.maximum(gains, 0))[::-1].cumsum()
    half = int(np.searchsorted(rises, rises[-1] / 2)) + 1
    more = int((network.branch_share > network.carried_share).sum())
    outcome = (f'The share of the variance that lies between the classes rises from {share[0]:.2f} '
               f'in the pixels to {share[-1]:.2f} after the last block; {half} of the {count} '
               'blocks make half of what the blocks gain'
               if share[-1] - share[0] > CHANGE else
               f'The share of the variance that lies between the classes does not rise '
               f'({share[0]:.2f} in the pixels, {share[-1]:.2f} after the last block)')
    how = ('In most blocks the branch is better separated than what it is added to'
           if more > count / 2 else
           'In most blocks the branch is not better separated than what it is added to')
    form = (': the classes could be read before the first block, and what the blocks make is the '
            'form in which an average can read them.'
            if network.probe_map[0] > network.probe_map[-1] - NOTICEABLE
            and network.probe_mean[-1] > network.probe_mean[1] + NOTICEABLE else '.')
    return (f'{outcome}. {how}: in {more} of {count} the branch has the larger share of its '
            f'variance between the classes, and in {int((gains > 0).sum())} of {count} the output '
            f'has a larger one than the input. The probe of the averaged map, which is what the '
            f'last layer sees, goes from {network.probe_mean[1]:.1f} % after the stem to '
            f'{network.probe_mean[-1]:.1f} %, while the probe of the whole map starts at '
            f'{network.probe_map[0]:.1f} % on the pixels and ends at '
            f'{network.probe_map[-1]:.1f} %{form}')


def _dependence(name: str, lesions: Lesions) -> str:
    cost = np.round(lesions.deleted - lesions.whole, 6)  # exactly 5 points are not less than 5
    cheap = int((cost < NOTICEABLE).sum())
    count = len(lesions.blocks)
    dear = [lesions.blocks[i] for i in np.argsort(-cost) if cost[i] >= NOTICEABLE]
    if not cheap:
        return (f'No block of the {name} network can be spared: without any one of them the error '
                f'rises from {lesions.whole:.2f} % to {lesions.deleted.min():.1f} % at least, and '
                f'to {lesions.deleted.max():.1f} % without block {dear[0]}.')
    first = ('Half of the blocks can be spared' if 2 * cheap == count else
             'Most blocks can be spared' if 2 * cheap > count else 'Most blocks cannot be spared')
    return (f'{first}: without {cheap} of the {count} blocks of the {name} network, one at a time, '
            f'the error rises by less than {NOTICEABLE:.0f} points from {lesions.whole:.2f} %'
            + (f'; without block {dear[0]} it is {lesions.deleted.max():.1f} %.' if dear else '.'))


def _compared(networks: Mapping[str, Representation], lesions: Mapping[str, Lesions]) -> str:
    (one, a), (two, b) = list(networks.items())[:2]
    turned = [float(np.median(x.output_cosine.mean(1))) for x in (a, b)]
    last = [float(x.cka[0, -1]) for x in (a, b)]
    median = [float(np.median(lesions[name].deleted)) for name in (one, two)]
    nearer = one if turned[0] > turned[1] else two
    same = abs(last[0] - last[1]) < 0.1
    return (f'Side by side: block by block the {nearer} network stays nearer to its input (cosine '
            f'{turned[0]:.2f} in the {one} and {turned[1]:.2f} in the {two} network), '
            + (f'but over all blocks both end about equally far from the pixels (CKA {last[0]:.2f} '
               f'and {last[1]:.2f})' if same else
               f'and over all blocks they end at a CKA of {last[0]:.2f} and {last[1]:.2f} with the '
               'pixels')
            + f'. Their errors are {a.error:.2f} % and {b.error:.2f} % on {len(a.labels)} images, '
            f'and {median[0]:.2f} % and {median[1]:.2f} % when the median block is deleted.')
