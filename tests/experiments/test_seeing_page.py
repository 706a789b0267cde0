"""The numbers of docs/seeing.md are those that its commands wrote."""

import json
import pathlib
import re

import pytest

DOCS = pathlib.Path(__file__).parents[2] / 'docs'
PAGE = ' '.join((DOCS / 'seeing.md').read_text().split())
def measured(name: str) -> dict:
    return json.loads((DOCS / 'seeing' / f'{name}.json').read_text())


def flat(numbers: dict) -> dict:
    """The numbers of all sections by name."""
    return {name: value for section in numbers.values() if isinstance(section, dict)
            for name, value in section.items()}


NUMBERS, BLOCKS, CIFAR = map(measured, ('numbers', 'photos_blocks', 'cifar10'))
FLAT, MAXIMISED = flat(NUMBERS), flat(measured('photos_maximised'))
OF_CIFAR = flat(CIFAR)
OF_BLOCKS = flat(BLOCKS)
ATTRIBUTIONS = measured('photos_attributions')
GRADIENTS = flat(ATTRIBUTIONS)
PHOTOS = measured('photos')


def column(table: str, head: str, numbers: dict) -> list:
    """The cells of a column, in the order of the rows."""
    heads, *rows = numbers['tables'][table]
    return [row[heads.index(head)] for row in rows]


def step_to_step(name: str, numbers: dict) -> list[float]:
    """The CKA of all pairs of steps that follow one another."""
    rows = numbers['tables'][f'cka_{name}'][1:]
    return [rows[i + 1][i + 1] for i in range(len(rows) - 1)]


STEPS = column('movement', 'step', CIFAR)
RATIO = dict(zip(STEPS, column('movement', 'norm of branch / norm of carried, residual', CIFAR),
                 strict=True))
DELETED = column('deletion', 'error without it, residual (%)', CIFAR)
PLAIN_DELETED = column('deletion', 'error without it, plain (%)', CIFAR)
PHOTO_DELETED = dict(zip(column('deletion', 'block', BLOCKS),
                         column('deletion', 'error without it, residual (%)', BLOCKS), strict=True))
SWAPPED = {error: blocks for blocks, error in BLOCKS['tables']['swapping'][1:]}
PROBE = 'accuracy of a linear probe of the {} (%)'


def last_stage(network: str) -> list[str]:
    """The probe of the mean before stage 3, after its first block and after its last."""
    table = f'separability_{network}'
    accuracy = dict(zip(column(table, 'step', CIFAR), column(table, PROBE.format('mean'), CIFAR),
                        strict=True))
    return [f'{accuracy[step]:.1f} %' for step in ('2.9', '3.1', '3.9')]


SMALL_STEPS, PLAIN_STEPS = step_to_step('residual', CIFAR)[2:], step_to_step('plain', CIFAR)
MAP_PROBE, MEAN_PROBE = (column('separability_residual', PROBE.format(what), BLOCKS)
                         for what in ('map', 'mean'))
PHOTO_CKA = column('cka_with_pixels', 'residual', BLOCKS)
FOLLOWING = step_to_step('residual', BLOCKS)[1:]  # from the stem on
SENTENCES = [
    f'the residual network gets {FLAT["error_residual"]:.2f} % wrong, and the plain one '
    f'{FLAT["error_plain"]:.2f} %',
    f'the residual network gets {OF_CIFAR["error_residual"]:.2f} % wrong, and the plain one '
    f'{OF_CIFAR["error_plain"]:.2f} %',
    f'falls from {RATIO["1.1"]:.2f} in the first block to {RATIO["1.9"]:.2f} at the end of the '
    'first stage',
    f'the median block has a ratio of {OF_CIFAR["branch_over_carried_plain_median"]:.2f}',
    f'after the first block, the CKA of consecutive steps is at least {min(SMALL_STEPS):.2f}, and '
    f'the last block has {OF_CIFAR["cka_pixels_last_residual"]:.2f} with the pixels '
    f'({OF_CIFAR["cka_pixels_shuffled_residual"]:.2f} if the images are permuted)',
    f'where stage 3 begins is {min(PLAIN_STEPS):.2f}. It ends nearer to the pixels, at '
    f'{OF_CIFAR["cka_pixels_last_plain"]:.2f}',
    f'the accuracy of the probe of the mean rises from {MEAN_PROBE[0]:.1f} % on the pixels (their '
    f'mean colour) to '
    f'{MEAN_PROBE[1]:.1f} % after the stem and {MEAN_PROBE[-1]:.1f} % after the last block',
    f'the probe of the whole map is {MAP_PROBE[0]:.1f} % on the pixels and {MAP_PROBE[-1]:.1f} % '
    f'after the last block',
    f'the CKA with the pixels is {PHOTO_CKA[1]:.2f} after the stem and {PHOTO_CKA[-1]:.2f} after '
    f'the last block ({OF_BLOCKS["cka_pixels_shuffled_residual"]:.2f} if the images are permuted)',
    f'the last block changes most ({FOLLOWING[-1]:.2f} to the step before it)',
    f'all other steps in a row have at least {min(FOLLOWING[:-1]):.2f}',
    f'hold {100 * FLAT["pca_variance_residual_pixels"]:.0f} % of the variance of the pixels and '
    f'{100 * FLAT["pca_variance_residual_last"]:.0f} % of that after the last block',
    f'any of {sum(error < OF_CIFAR["error_residual"] + 5 for error in DELETED)} of the '
    f'{len(DELETED)} residual blocks costs less than 5 points of error, and deleting the first of '
    f'stage 3 costs most ({max(DELETED):.1f} % error)',
    f'any of {sum(error < OF_BLOCKS["error_residual"] + 5 for error in PHOTO_DELETED.values())} of '
    f'the {len(PHOTO_DELETED)} blocks costs less than 5 points of error '
    f'({OF_BLOCKS["error_residual"]:.1f} % with all of them). Two blocks of stage 2 cost far more: '
    f'without the first the error is {PHOTO_DELETED["2.1"]:.1f} %, and without the third '
    f'{PHOTO_DELETED["2.3"]:.1f} %. Swapping two blocks of a stage gives errors from '
    f'{min(SWAPPED):.1f} % ({SWAPPED[min(SWAPPED)]}) to {max(SWAPPED):.1f} % '
    f'({SWAPPED[max(SWAPPED)]})',
    f'the error is at least {min(PLAIN_DELETED):.1f} %, and {OF_CIFAR["error_plain"]:.1f} % with',
    f'a probability of {100 * MAXIMISED["maximised_class_probability"]:.1f} % and a score of '
    f'{MAXIMISED["maximised_class_score"]:.1f}',
    *('{}, {}, {} and {} times '.format(*(f'{MAXIMISED[f"maximised_over_{other}_stage{i}"]:.1f}'
                                          for i in (1, 2, 3, 4))) + end
      for other, end in (('random', 'the activation of noise'),
                         ('best_image', 'that of the best test image'))),
    f'a median gap of {100 * GRADIENTS["attribution_gap_median"]:.1f} % (largest '
    f'{100 * GRADIENTS["attribution_gap_largest"]:.1f} %)',
    f'{100 * GRADIENTS["attribution_against"]:.0f} % of them count against the class',
    f'from {column("attribution_deletion", "0 % taken away", ATTRIBUTIONS)[0]:.2f} to '
    f'{GRADIENTS["attribution_probability_without_fifth"]:.2f} if integrated gradients choose '
    'them, and to '
    f'{column("attribution_deletion", "20 % taken away", ATTRIBUTIONS)[1]:.2f} if they are random',
    *(f'({FLAT["loss_surface_residual_centre"]:.4f} and {FLAT["loss_surface_plain_centre"]:.4f})',
      f'on {100 * FLAT["loss_surface_residual_low_share"]:.0f} % of its slice and on '
      f'{100 * FLAT["loss_surface_plain_low_share"]:.0f} % of that of the plain',
      f'medians of {FLAT["loss_surface_residual_median"]:.1f} and '
      f'{FLAT["loss_surface_plain_median"]:.1f}'),
    '{} before this stage, {} after its first block and {} after its last'.format(
        *last_stage('residual')),
    'the three are {}, {} and {}.'.format(*last_stage('plain')),
]
FILTERS = PHOTOS['First-layer filters']
GRADCAM = PHOTOS['Where the evidence lies: Grad-CAM']
WITHOUT = 'gradcam_probability_without_fifth_'
SENTENCES += [
    f'The median filter has {100 * FILTERS["filters_mean_share"]:.0f} % of its squared norm in '
    f'its mean',
    f'{FILTERS["filters_weak"]} have less than a tenth of the largest norm, and '
    f'{FILTERS["filters_alike"]} of 2,016 pairs are alike or opposite',
    f'from {PHOTOS["tables"]["gradcam_deletion"][1][1]:.2f} to {GRADCAM[WITHOUT + "stage4"]:.2f} '
    f'by the map of stage 4, to {GRADCAM[WITHOUT + "stage3"]:.2f} by that of stage 3, and to '
    f'{GRADCAM[WITHOUT + "random_pixels"]:.2f} if they are random',
]


@pytest.mark.parametrize('sentence', SENTENCES)
def test_the_page_says_what_the_numbers_are(sentence):
    assert sentence in PAGE


def test_what_the_page_says_in_words_holds():
    assert min(FOLLOWING) == FOLLOWING[-1]
    assert [step for step, ratio in RATIO.items() if ratio > 1] == ['3.1', STEPS[-1]]
    assert DELETED[STEPS.index('3.1')] == max(DELETED)
    breaks = column('cka_plain', 'step', CIFAR)[1:]
    assert breaks[PLAIN_STEPS.index(min(PLAIN_STEPS))] == '3.1'
    assert (FLAT['loss_surface_residual_local_minima']
            == FLAT['loss_surface_plain_local_minima'] == 1)


def test_every_measured_number_of_the_page_is_one_of_them():
    # Paragraphs about this pair of networks begin with "Here" or "In the median channel".
    text = (DOCS / 'seeing.md').read_text()
    for paragraph in re.findall(r'^(?:Here|In the median channel) .*?(?=\n\n)', text,
                                re.MULTILINE | re.DOTALL):
        rest = ' '.join(paragraph.split()).replace('95 % intervals', '')
        for sentence in SENTENCES:
            rest = rest.replace(sentence, '')
        assert not re.search(r'\d\.\d|\d %', rest), rest


def test_every_picture_of_the_page_is_there():
    names = re.findall(r'\]\(seeing/(\w+\.(?:png|jpg))\)', (DOCS / 'seeing.md').read_text())
    files = [path for path in (DOCS / 'seeing').iterdir() if path.suffix in ('.png', '.jpg')]
    assert sorted(names) == sorted(path.name for path in files)
    assert max(path.stat().st_size for path in files) < 200_000
