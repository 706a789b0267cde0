"""The numbers of docs/results/README.md are those of the JSON files beside it."""

import json
import pathlib
import re
import statistics

import pytest

from configs import imagenette_finetune
from experiments.paper import CIFAR10_ERROR

RESULTS = pathlib.Path(__file__).parents[1] / 'docs' / 'results'
PAGE = (RESULTS / 'README.md').read_text()
TEXT = ' '.join(PAGE.split())


def read(name: str) -> dict:
    return json.loads((RESULTS / f'{name}.json').read_text())


def runs(name: str) -> dict[str, dict]:
    return {run['name']: run for run in read(name)['runs']}


def cells(*values: object) -> str:
    """A row of a table."""
    return f'| {" | ".join(map(str, values))} |'.replace('|  |', '| |').replace('|  |', '| |')


def seconds(run: dict) -> str:
    return '' if run['processor_seconds'] is None else f'{run["processor_seconds"]:,.0f} s'


def digits_rows() -> list[str]:
    """Of the table of degradation, from the text of its findings."""
    found = {}
    for finding in read('degradation')['findings']:
        match = re.fullmatch(r'(\S+) has a lower (training loss|test error) than (\S+)',
                             finding['claim'])
        if match:
            first, what, second = match.groups()
            values = re.findall(r'([\d.]+ ± [\d.]+) \(3 seeds\)', finding['measured'])
            found |= {(first, what): values[0], (second, what): values[1]}
    return [cells(name, found[name, 'test error'], found[name, 'training loss'])
            for name in sorted({name for name, _ in found})]


def digits_commit() -> str:
    commit, = {run['commit'] for run in read('degradation')['runs']}
    return f'The 18 runs were done with commit {commit[:7]}.'


def response(network: str, file: str = 'responses') -> str:
    """The mean over the layers and seeds."""
    kind, depth = network.split('-')
    of = [statistics.mean(seed['std']) for seed in read(file)['seeds']
          if seed['depth'] == int(depth) and seed['plain'] == (kind == 'plain')]
    return f'{statistics.mean(of):.3f} in {network}'


def detection_rows() -> list[str]:
    found = runs('detection')
    digits, scenes, blood = found.values()
    return [
        f'| {digits["images"]:,} | {digits["steps"]} | | | '
        f'{digits["evaluation"]["top1_error"]:.2f} |',
        f'| {scenes["images"]} | {scenes["steps"]} | {scenes["evaluation"]["ap"]:.2f} | '
        f'{scenes["evaluation"]["ap50"]:.2f} | |',
        f'| {blood["images"]} | {blood["steps"]} | | {blood["evaluation"]["ap50"]:.2f} | |']


def mask_rows() -> list[str]:
    *scenes, nuclei = runs('masks').values()
    rows = []
    for run in scenes:
        score = run['evaluation']
        rows.append(cells(
            f'{run["cells"]} x {run["cells"]}', run['filters'], run['layers'], run['targets'],
            *(f'{score[name]:.2f}' for name in ('ap', 'mask_ap', 'mask_ap50')), seconds(run)))
    score = nuclei['evaluation']
    return [*rows, cells(nuclei['images'], nuclei['steps'], *(
        f'{score[name]:.2f}' for name in ('ap', 'ap50', 'mask_ap', 'mask_ap50')), seconds(nuclei))]


def localization_rows() -> list[str]:
    rows = []
    for run in runs('localization').values():
        score = run['evaluation']
        rows.append(cells(f'{run["steps"]:,}', *(
            f'{score[name]:.1f}' if name in score else '' for name in (
                'localization_error', 'top5_localization_error', 'top1_error')), seconds(run)))
    centre, = {run['evaluation']['baseline_error'] for run in runs('localization').values()
               if 'baseline_error' in run['evaluation']}
    return [*rows, f'| | {centre:.1f} | | | |']


def finetuning_rows() -> list[str]:
    return [cells(run['seed'], f'{run["evaluation"]["top1_error"]:.1f}', seconds(run))
            for run in read('finetuning')['runs']]


def finetuning() -> list[str]:
    """What the fine-tuning took, and what was tried before."""
    numbers = read('finetuning')
    first, *_ = numbers['runs']
    chosen, *others = numbers['chosen_on_training_images']['rows']
    config = imagenette_finetune.get_config()
    assert (chosen['learning_rate'], chosen['weight_decay'], chosen['flips'], chosen['epochs']) == (
        config.schedule.learning_rate, config.optimizer.weight_decay, config.data.flip, 8)
    assert {run['steps'] for run in numbers['runs']} == {config.num_steps}
    assert config.num_steps * config.batch_size == 8 * first['train_images']
    assert {row['seeds'] for row in (chosen, *others)} == {10}
    assert all(other['error'] > chosen['error'] for other in others
               if other['epochs'] <= chosen['epochs'])
    more, = (other for other in others if other['epochs'] > chosen['epochs'])
    assert more['epochs'] == 10 and abs(more['error'] - chosen['error']) < 0.05
    little, = (other for other in others
               if (other['weight_decay'], other['epochs']) == (0.0001, chosen['epochs']))
    assert little['disagreement'] > 2 * chosen['disagreement']  # as the config says
    before = numbers['tested_on_the_validation_images_before']
    assert len(before['others']) == 10
    errors = [run['error'] for run in before['earlier_recipe']['runs'] if ',' not in run['what']]
    return [f'Each run took {first["steps"]} steps of {config.batch_size} images. The first one '
            f'took {first["seconds"] / 60:.1f} minutes, on two cores that did nothing else. With '
            'the folders of Imagenette as they are, whose names put the classes in '
            'another order, the error with seed 0 was '
            f'{numbers["another_order"]["evaluation"]["top1_error"]:.1f} %.',
            'an earlier recipe with little weight decay had errors of '
            '{:.1f}, {:.1f} and {:.1f} % with the same seeds'.format(*errors)]


def deep_rows() -> list[str]:
    trained = {f'ResNet-{run["overrides"]["model.depth"]}': run
               for run in read('digits_deep/degradation')['runs']}
    return [cells(name, f'{trained[name]["final_train_error"]:.2f}', f'{run["training_error"]:.2f}',
                  f'{trained[name]["final_error"]:.2f}')
            for name, run in runs('digits_deep/training_images').items()] + [
        cells(name, *(f'{run[number]:.2f}' for number in (
            'final_train_error', 'training_error', 'final_error')))
        for name, run in runs('digits_deep/zero_init').items()]


def zero_init() -> str:
    """Where the training error of blocks that start as the identity falls below the other's."""
    others = {row['step']: row['error'] for row in read('digits_deep/degradation')['curves']
              if (row['depth'], row['images']) == (1202, 'training')}
    run, = runs('digits_deep/zero_init').values()
    errors = dict(run['curves']['training'])
    assert errors.keys() == others.keys() and run['training_error'] == 0
    assert all((errors[step] > others[step]) == (step <= 200) for step in errors)
    return (f'its training error is higher up to step 200 ({errors[200]:.2f} against '
            f'{others[200]:.2f} %). From then on it is lower')


def deepest() -> list[str]:
    """The training images that ResNet-1202 gets wrong, and the time that it took."""
    run = runs('digits_deep/training_images')['ResNet-1202']
    assert round(run['training_error'] / 100 * run['images']) == 1
    return [f'one of {run["images"]:,} training images wrong',
            f'the first command took {run["training_processor_seconds"]:,.0f} s of processor time.']


def cifar10() -> dict[str, dict]:
    """Network: its run, from the ledger of the sweep."""
    return {f'{"plain" if plain else "ResNet"}-{depth}': run
            for run in read('cifar10/degradation')['runs']
            for plain, depth in [(run['overrides']['model.plain'],
                                  run['overrides']['model.depth'])]}


def cifar10_rows() -> list[str]:
    ours = [cells(name, f'{run["final_train_error"]:.2f}', f'{run["final_error"]:.2f}',
                  '' if run['overrides']['model.plain']
                  else CIFAR10_ERROR[run['overrides']['model.depth']])
            for name, run in cifar10().items()]
    others = [*read('cifar10/warmup')['runs'], *read('cifar10/parity')['runs']]
    return [*ours, *(cells(run['name'], f'{run["training_error_of_the_last_50_steps"]:.2f}'
                           if 'training_error_of_the_last_50_steps' in run else '',
                           f'{run["test_error"]:.2f}', '') for run in others)]


def lossless() -> str:
    run, = read('cifar10/lossless')['runs']
    return (f'its test error is {run["published_test_error_on_lossless_images"]:.2f} % there, and '
            f'on this copy it is {run["test_error"]:.2f} %.')


def greatest_response() -> str:
    first, *others = next(seed['std'] for seed in read('cifar10/responses')['seeds']
                          if seed['depth'] == 56 and seed['plain'])
    assert first > max(others)
    return f'the first layer responds most, with {first:.3f}.'


def degradation() -> str:
    error = cifar10()['plain-56']['final_train_error'] - cifar10()['plain-20']['final_train_error']
    return f'on the training images ({error:.2f} points)'


def lead() -> str:
    error = cifar10()['plain-20']['final_error'] - cifar10()['ResNet-20']['final_error']
    return f'test images ({error:.2f} points)'


def deeper() -> str:
    deep, shallow = (cifar10()[f'ResNet-{depth}'] for depth in (56, 20))
    train, test = (deep[name] - shallow[name] for name in ('final_train_error', 'final_error'))
    for name in ('final_train_error', 'final_error'):
        assert deep[name] > cifar10()['plain-20'][name]
    return (f'{train:.2f} points higher on the training images, and {test:.2f} on the test images, '
            'higher even than that of plain-20.')


def start() -> str:
    """The training error of the steps from 150 to 200."""
    found = {point['depth']: point['error'] for point in read('cifar10/degradation')['curves']
             if point['kind'] == 'residual' and point['images'] == 'training'
             and point['step'] == 200}
    return (f'the training error is {found[56]:.1f} % in ResNet-56 and {found[20]:.1f} % in '
            'ResNet-20')


def warmup() -> list[str]:
    """ResNet-56 with the paper's warm-up beside the same without, and beside ResNet-20."""
    run, = read('cifar10/warmup')['runs']
    warm = run['training_error_of_the_last_50_steps'], run['test_error']
    cold, shallow, plain = (
        tuple(cifar10()[name][error] for error in ('final_train_error', 'final_error'))
        for name in ('ResNet-56', 'ResNet-20', 'plain-20'))
    assert all(error < other for error, other in zip(warm, plain, strict=True))
    assert run['steps_of_the_warm_up']['less_than'] < 50
    words = ['above' if error > other else 'below'
             for error, other in zip(warm, shallow, strict=True)]
    gain, gap = ([abs(a - b) for a, b in zip(warm, other, strict=True)]
                 for other in (cold, shallow))
    return [f'ends {gain[0]:.2f} points lower on the training images and {gain[1]:.2f} on the test '
            'images, which is below plain-20 and near ResNet-20 '
            f'({gap[0]:.2f} points {words[0]} it on the training images, {gap[1]:.2f} {words[1]} '
            'on the test images)']


def first_steps() -> list[str]:
    found = {('plain' if seed['plain'] else 'ResNet', seed['depth']): max(seed['change'])
             for seed in read('cifar10/first_step')['seeds']}
    return [f'adds {found["plain", 56]:.1f} times their norm to the weights of one layer',
            f'more than {found["plain", 20]:.3f} times the norm in plain-20, '
            f'{found["ResNet", 20]:.3f} times in ResNet-20 and {found["ResNet", 56]:.3f} times in '
            'ResNet-56']


def parity() -> str:
    """This program against the other one, two seeds each."""
    ours, others = ([run['test_error'] for run in read('cifar10/parity')['runs']
                     if (run['program'] == 'resnet_jax') == is_ours] for is_ours in (True, False))
    assert max(ours) < min(others)
    return (f'test errors of {ours[0]:.2f} and {ours[1]:.2f} %. Their mean is '
            f'{statistics.mean(others) - statistics.mean(ours):.2f} points below that of '
            f"PyTorch's two seeds, which differ by {max(others) - min(others):.2f} points "
            'themselves')


def gain() -> str:
    score = runs('localization')['per class, longer']['evaluation']
    return (f'lowers the error of the centred box by '
            f'{score["baseline_error"] - score["localization_error"]:.1f} points')


def spread() -> str:
    boxes = [run['evaluation']['ap'] for run in list(runs('masks').values())[:-1]]
    return f'the same box AP within {max(boxes) - min(boxes) + .05:.1f} points'


MEASURED = [*digits_rows(), digits_commit(),
            *map(response, ('ResNet-20', 'plain-20', 'ResNet-56', 'plain-56')),
            *detection_rows(), *mask_rows(), *localization_rows(), *finetuning_rows(),
            *deep_rows(), *deepest(), *cifar10_rows(), *(response(network, 'cifar10/responses')
                               for network in ('ResNet-20', 'ResNet-56', 'plain-20', 'plain-56')),
            lossless(), greatest_response(), degradation(), lead(), deeper(), start(), *warmup(),
            *first_steps(), parity(),
            zero_init(), *finetuning(), gain(), spread()]
NAMES = ('ResNet-8', 'ResNet-18', 'ResNet-20', 'ResNet-50', 'ResNet-56', 'ResNet-110',
         'ResNet-1202', 'plain-8', 'plain-20', 'plain-56', 'CIFAR-10', 'top-1')
# Numbers that describe what was done. Any other digit of the page must be in a measured sentence.
GIVEN = [
    '20 layers', '18 networks of 8, 20 and 56 layers', '450 steps',
    "1,500 of scikit-learn's digits of 8 x 8 pixels", 'the other 297', 'the 95 % t-interval',
    'its own 95 % interval', 'on 1,499 of the 1,500 training images',
    '(figures 1, 4 and 6 of the paper)', 'At 56 layers',
    'of 8 and 20 layers',
    'better than 8; 56 and 20 differ', f'one test image is {100 / 297:.2f} points',
    '(table 6)', 'With 8 layers', '(figure 7)', 'over the 55 layers', 'over 19 layers',
    'are near 1,', '64,000 steps', '100 means', 'IoU (area of the intersection over area of the '
    'union) of 0.5 for AP50', 'from 0.5 to 0.95', 'seed 0', 'scenes of 4 to 8 digits',
    '292 photographs', 'Pascal VOC 2012', 'at least 50 %', '| 3x3 layers |', 'after 400 steps',
    'on 256 scenes', 'rounded to 0 or 1', 'on 433 fluorescence', 'Data Science Bowl 2018',
    'an IoU of at most 0.5',
    'on 20 classes', '64 x 64 pixels', 'on 1,000 images', 'which 1,000 images', '"Top 5"',
    '| top 5 |', '300 training and 100 validation images', '224 x 224 pixels',
    'stage 3 (14 x 14 positions)', 'stage 4 (7 x 7 positions)',
    'recipe for CIFAR-10 (section 4.2)', '6,400 steps', 'after 3,200 and 4,800',
    'of the last 50 steps', 'With 20 layers', 'last column (table 6)',
    'With shortcuts, 56 layers', 'over the steps from 150 to 200,', 'network of 110 layers',
    'a learning rate of 0.1 is', 'a rate of 0.01 until', 'is below 80 %.',
    'fewer than 50 steps here', '(section 4.1)',
    'network of 56 layers', 'that of 20,', "the paper's figure 6,", 'As in figure 7 of',
    'A thousand layers (section 4.2)', 'trains 1,202 layers', 'below 0.1 %', 'with 110 layers',
    'than that of the networks of 56 and 110 layers', 'like those of 56 and 110 layers',
    'Goyal et al., 2017',
    'had 500 steps', 'learning rate of 0.01,', 'over the first 200,', 'last 25 steps, shifted so',
    'over 64 images at a time', 'the table says 128,',
    'over 128 images. That', 'over 128 as well', 'in PyTorch, seed 1',
    'mask AP50', 'box AP50', '| AP50 |', 'The AP50 of',
]


@pytest.mark.parametrize('path', [
    'README.md', 'docs/data.md', 'configs/imagenette_finetune.py'])
def test_other_documents_give_the_same_errors_of_the_fine_tuning(path):
    first, *_ = runs = read('finetuning')['runs']
    errors = [run['evaluation']['top1_error'] for run in runs]
    text = ' '.join((RESULTS.parents[1] / path).read_text().split())
    assert '{:.1f}, {:.1f} and {:.1f} %'.format(*errors) in text
    if path != 'README.md':
        assert f'{first["seconds"] / 60:.1f} minutes' in text


@pytest.mark.parametrize('sentence', MEASURED)
def test_the_page_says_once_what_the_files_hold(sentence):
    assert TEXT.count(sentence) == 1


def unexplained(page: str) -> list[str]:
    """The words with digits that are neither measured, nor given, nor names."""
    page = re.sub(r'```.*?```', '', page, flags=re.DOTALL)
    page = re.sub(r'!?\[[^]]*\]\([^)]*\)|`[^`]*`', '', page)
    text = re.sub(r'\s+', ' ', page)
    for known in sorted([*MEASURED, *GIVEN], key=len, reverse=True):
        text = text.replace(known, '')
    text = re.sub(rf'(?<![\w-])({"|".join(NAMES)})(?![\w.])', '', text)
    return [word for word in text.split() if re.search(r'\d', word)]


def test_every_number_of_the_page_is_measured_or_given():
    assert unexplained(PAGE) == []


def test_a_changed_digit_is_noticed():
    measured = re.sub(r'```.*?```|!?\[[^]]*\]\([^)]*\)|`[^`]*`', lambda m: ' ' * len(m[0]), PAGE,
                      flags=re.DOTALL)
    places = [match.start() for match in re.finditer(r'(?<![\w-])\d|(?<=[\d.,])\d', measured)]
    assert len(places) > 200
    for place in places:
        other = str((int(PAGE[place]) + 1) % 10)
        changed = PAGE[:place] + other + PAGE[place + 1:]
        text = ' '.join(changed.split())
        assert unexplained(changed) or any(sentence not in text for sentence in MEASURED), \
            PAGE[place - 30:place + 10]


def test_every_picture_of_the_page_is_there():
    pictures = re.findall(r'!\[[^]]+\]\(([^)]+)\)', PAGE)
    assert len(pictures) >= 8
    for picture in pictures:
        assert (RESULTS / picture).is_file()
