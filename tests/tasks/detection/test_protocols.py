"""The test protocols of detectors, against plain loops, training's evaluation and each other."""

import functools
import io
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils
from PIL import Image

import resnet_jax
from resnet_jax import config as config_lib
from resnet_jax import weights
from resnet_jax.data import Item, registry
from resnet_jax.data.objects import Canvas
from resnet_jax.data.scenes import ObjectArrays
from resnet_jax.errors import UserError
from resnet_jax.models import rcnn
from resnet_jax.tasks.detection import combined, inference, metrics, protocols, task, testing
from resnet_jax.tasks.detection.combined import Plan
from resnet_jax.training import evaluation
from resnet_jax.weights import stored

SIDE, CLASSES, NAMES = 32, 3, ['cat', 'dog', 'cow']
SIZES = np.array([[SIDE, SIDE]], np.int32)


def detector_config():
    """ResNet-8 of 4 filters as a detector of three classes, 16 regions an image."""
    config = config_lib.default()
    config.task, config.compilation_cache = 'detection', ''
    config.model.update(family='cifar', depth=8, width=4, shortcut='A', num_classes=CLASSES)
    config.model.detector.update(
        anchor_sizes=(8, 14), anchor_ratios=(1.0,), rpn_features=4, rpn_pre_nms=(64, 64),
        rpn_post_nms=(16, 16), roi_size=4, nms=0.5, detections=12)
    config.data.update(source='toys', image_size=SIDE, channels=1, max_objects=4)
    config.batch_size = config.eval.batch_size = 8
    config.num_steps, config.mesh.data = 1, 1
    config.schedule.name, config.schedule.warmup = 'constant', 'none'
    config.eval.object_areas = (64, 144)
    return config


def toys(count=11):
    """Noise with boxes drawn at random."""
    rng = np.random.default_rng(5)
    images = [rng.integers(0, 256, (SIDE, SIDE, 1), np.uint8) for _ in range(count)]
    corners = [rng.uniform(0, 20, (rng.integers(1, 5), 2)) for _ in images]
    boxes = [np.concatenate([xy, xy + rng.uniform(5, 12, xy.shape)], 1).astype(np.float32)
             for xy in corners]
    classes = [rng.integers(CLASSES, size=len(x)).astype(np.int32) for x in boxes]
    return ObjectArrays(images, boxes, classes, 'toys', NAMES)


@pytest.fixture(scope='module')
def source():
    return toys()


@pytest.fixture(autouse=True)
def toys_are_a_source(monkeypatch, source):
    module = types.SimpleNamespace(create=lambda config, split: source)
    monkeypatch.setattr(registry, 'find', lambda name: module)


def store(folder, seed, context=False, names=None):
    """A network whose scores differ from region to region."""
    config = detector_config()
    config.model.detector.context = context
    model = rcnn.create(config)
    variables = jax.jit(lambda key: model.init(
        key, np.zeros((1, SIDE, SIDE, 1), np.float32), train=False))(jax.random.key(seed))
    variables = jax.tree.map(np.array, variables)
    for layer, factor in (('score', 60), ('delta', 300)):
        variables['params']['box'][layer]['kernel'] *= factor
    variables['params']['box']['score']['bias'] = np.array([0, 0, 0, 1], np.float32)
    found = weights.Weights(config, variables, {'mean': np.full(1, .5, np.float32),
                                                'std': np.full(1, .3, np.float32)}, '')
    stored.write(folder, found, names)
    return folder


@pytest.fixture(scope='module')
def paths(tmp_path_factory):
    return [str(store(tmp_path_factory.mktemp(f'net{seed}'), seed)) for seed in (0, 1)]


@pytest.fixture(scope='module')
def networks(paths):
    return [resnet_jax.load(path) for path in paths]


def run(networks, source, mesh_size=1, batch_size=4, config=None, **flags):
    """The images as they come out of a protocol, by `testing.run`."""
    config = config or detector_config()
    plan, canvases = protocols.planned(flags, config, networks[0])
    mesh = jax.make_mesh((mesh_size,), ('data',), devices=jax.local_devices()[:mesh_size],
                         axis_types=(jax.sharding.AxisType.Auto,))
    return testing.run(protocols._function(networks, plan, mesh), combined.weights_of(networks),
                       source, canvases, batch_size, mesh, skip_unreadable=True)


def assert_same(found, expected, atol=1e-3):
    assert [x.index for x in found] == [x.index for x in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.found.classes, other.found.classes)
        np.testing.assert_allclose(one.found.scores, other.found.scores, atol=1e-5)
        np.testing.assert_allclose(one.found.boxes, other.found.boxes, atol=atol)


@pytest.fixture(scope='module')
def plain(networks, source):
    found = run(networks[:1], source)
    assert np.mean([len(x.found.scores) for x in found]) > 5
    assert len({label for x in found for label in x.found.classes.tolist()}) > 1
    return found


def test_the_plain_protocol_is_the_evaluation_of_training(paths, networks, source, plain,
                                                          monkeypatch):
    rng = np.random.default_rng(2)
    boxes = [x.found.boxes[:4] for x in plain]  # so that some detections are right
    easy = ObjectArrays(source.images, [np.clip(x + rng.uniform(-1, 1, x.shape), 0, 32).astype(
        np.float32) for x in boxes], [x.found.classes[:4] for x in plain], 'easy', NAMES)
    monkeypatch.setattr(registry, 'find', lambda name: types.SimpleNamespace(
        create=lambda config, split: easy))
    config = detector_config()
    report = evaluation.evaluate(paths[:1], config, 0, {}, [])
    variables, normalization = combined.weights_of(networks[:1])[0]
    batch = jax.tree.map(lambda *parts: np.stack(parts),
                         *map(Canvas(((SIDE, SIDE),), 1, 4).example, easy))
    batch = task.augment(batch | {'mask': np.ones(len(easy), np.float32)}, None, normalization)
    evaluate = jax.jit(functools.partial(task.evaluate, networks[0].model, config=config))
    expected = task.report(*jax.device_get(evaluate(variables, batch)), config)
    assert report.values['eval/count'] == 11 and 10 < expected['ap'] < 99
    for name, value in expected.items():
        ours = report.values[f'eval/{name}']
        assert ours is None if np.isnan(value) else ours == pytest.approx(value, abs=0.05)
    measured = [ap for ap in report.values['eval/class_ap'] if ap is not None]
    assert np.mean(measured) == pytest.approx(report.values['eval/ap'])
    lines = report.text.splitlines()
    assert lines[0].startswith(f'AP {report.values["eval/ap"]:.2f}  AP50 ')
    assert lines[0].endswith('on 11 images')
    assert [line.split()[0] for line in lines[1:]] == ['class', *NAMES]
    objects = np.concatenate([item.target['classes'] for item in easy])
    assert [int(line.split()[2]) for line in lines[2:]] == np.bincount(
        objects, minlength=CLASSES).tolist()


@pytest.mark.parametrize('mesh_size', [2, pytest.param(8, marks=pytest.mark.slow)])
def test_every_image_counts_once_on_any_number_of_devices(mesh_size, networks, source, plain):
    assert [x.index for x in plain] == list(range(11))
    assert_same(run(networks[:1], source, mesh_size, batch_size=mesh_size), plain)


def iou(a, b):
    sides = np.maximum(0, np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]))
    areas = [np.prod(box[2:] - box[:2]) for box in (a, b)]
    both = np.prod(sides)
    return both / (sum(areas) - both) if sum(areas) > both else 0


@functools.partial(jax.jit, static_argnums=0)
def propose(model, variables, image):
    return inference.propose(model, variables, image, SIZES)


@functools.partial(jax.jit, static_argnums=0)
def classify(model, variables, features, regions):
    return inference.classify(model, variables, features, regions, SIZES)


def refined(network, item):
    """Refinement of one image as appendix B has it, box by box."""
    model, (variables, normalization) = network.model, combined.weights_of([network])[0]
    image = (item.image / np.float32(255) - normalization['mean']) / normalization['std']
    features, proposals = propose(model, variables, image[None])
    assert proposals.valid.all()
    old = classify(model, variables, features, proposals.boxes)
    probabilities, boxes = (np.asarray(x[0], np.float64) for x in old)
    again = np.float32([own[p.argmax()] for own, p in zip(boxes, probabilities, strict=True)])
    new = classify(model, variables, features, again[None])
    probabilities, boxes = (np.concatenate([a, x[0]]) for a, x in (
        (probabilities, new[0]), (boxes, new[1])))
    detections = []
    for label in range(CLASSES):
        kept = []
        for i in np.argsort(-probabilities[:, label], kind='stable'):
            if probabilities[i, label] > 0.05 and all(
                    iou(boxes[i, label], boxes[j, label]) <= 0.3 for j in kept):
                kept.append(i)
        for i in kept:
            near = [j for j in range(len(boxes)) if iou(boxes[i, label], boxes[j, label]) >= 0.5]
            weight = probabilities[near, label]
            voted = (weight[:, None] * boxes[near, label]).sum(0) / weight.sum()
            detections.append((probabilities[i, label], label, voted))
    return sorted(detections, key=lambda x: -x[0])[:12], len(again)


def test_refinement_is_that_of_plain_loops(networks, source, plain):
    found = run(networks[:1], source, refine=True)
    for image in found[:4]:
        expected, count = refined(networks[0], source[image.index])
        assert count == 16 and len(expected) == len(image.found.scores) > 3
        np.testing.assert_allclose(image.found.scores, [x[0] for x in expected], atol=1e-5)
        np.testing.assert_array_equal(image.found.classes, [x[1] for x in expected])
        np.testing.assert_allclose(image.found.boxes, [x[2] for x in expected], atol=2e-3)
    with pytest.raises(AssertionError):
        assert_same(found, plain)


def test_an_ensemble_of_a_network_with_itself_is_the_network(networks, source, plain):
    assert_same(run([networks[0]] * 2, source), plain)


def test_an_ensemble_averages_over_all_proposals_of_its_networks(networks, source):
    item = source[3]
    image = (item.image / np.float32(255) - 0.5) / np.float32(0.3)
    looks = [propose(network.model, dict(network.variables), image[None])
             for network in networks]
    regions = np.concatenate([proposals.boxes for _, proposals in looks], 1)
    both = [classify(network.model, dict(network.variables), features, regions)
            for network, (features, _) in zip(networks, looks, strict=True)]
    select = jax.jit(functools.partial(rcnn.select, networks[0].model))
    expected = select(*(np.mean(parts, 0) for parts in zip(
        *jax.device_get(both), strict=True)), np.ones((1, 32), bool))
    found = run(networks, [item])[0].found
    valid = np.asarray(expected.valid[0])
    np.testing.assert_allclose(found.scores, expected.scores[0][valid], atol=1e-5)
    np.testing.assert_allclose(found.boxes, expected.boxes[0][valid], atol=1e-3)


def test_one_scale_that_is_the_configs_is_the_plain_protocol(networks, source, plain):
    assert_same(run(networks[:1], source, protocol='multi_scale', scales=['32']), plain)


def test_two_scales_merge_the_maxima_of_the_last_stage(networks, source):
    network, item = networks[0], source[2]
    model, (variables, normalization) = network.model, combined.weights_of([network])[0]
    plan, canvases = protocols.planned(
        {'protocol': 'multi_scale', 'scales': ['48', '32']}, detector_config(), network)
    assert plan == Plan((32, 48), (0, 1), 32, False)
    assert [canvas.sizes for canvas in canvases] == [((32, 32),), ((48, 48),)]
    images = [(canvas.pixels(item)[0] / np.float32(255) - normalization['mean'])
              / normalization['std'] for canvas in canvases]
    features, proposals = propose(model, variables, images[0][None])

    @jax.jit
    def merged(features, image, boxes, valid):
        bound, stages = model.bind(variables), []
        maps = [features, bound.trunk(image, train=False)]
        for factor, own in zip((1, 1.5), maps, strict=True):
            pooled = bound.pool(own, boxes * factor, train=False)
            stages.append(bound.run('stage3', pooled[0], train=False))
        described = jnp.maximum(*stages).mean((1, 2))[None]
        return rcnn.select(model, *rcnn.predicted(
            model, *bound.box(described), boxes, SIZES), valid)

    expected = merged(features, images[1][None], proposals.boxes, proposals.valid)
    found = run([network], [item], protocol='multi_scale', scales=['48', '32'])[0].found
    valid = np.asarray(expected.valid[0])
    np.testing.assert_allclose(found.scores, expected.scores[0][valid], atol=1e-4)
    np.testing.assert_allclose(found.boxes, expected.boxes[0][valid], atol=1e-2)


def test_regions_take_the_two_scales_at_which_they_come_closest_to_224_pixels():
    plan = Plan((200, 400, 600, 800, 1000), (1, 2, 0, 3, 4), 600, False)
    sides = np.array([600, 400, 300, 224, 190, 150, 60])
    regions = np.stack([0 * sides, 0 * sides, sides, sides], -1)[None].astype(np.float32)
    # 224 / 300 * 600 = 448 lies between 400 and 600; 224 itself is next to 800, not to 400.
    expected = [min(range(4), key=lambda i, side=side: sum(
        abs(np.log(side * s / 600 / 224)) for s in plan.scales[i:i + 2])) for side in sides]
    assert expected == [0, 0, 1, 2, 2, 3, 3]
    assert combined.nearest_pair(regions, plan)[0].tolist() == expected


def test_scales_of_the_paper_are_in_proportion(networks):
    config = detector_config()
    config.data.update(image_size=(480, 640), short_sides=(300,), long_side=500)
    plan, canvases = protocols.planned({'protocol': 'multi_scale'}, config, networks[0])
    assert plan.scales == (100, 200, 300, 400, 500) and plan.places == (1, 2, 0, 3, 4)
    assert canvases[0] == Canvas(((480, 640),), 1, 4, 300, 500)
    assert canvases[4] == Canvas(((800, 1067),), 1, 4, 500, 833)


@pytest.mark.slow
def test_everything_together_with_context(tmp_path, source):
    networks = [resnet_jax.load(store(tmp_path / str(seed), seed, context=True))
                for seed in (0, 1)]
    flags = dict(protocol='multi_scale', scales=['24', '32', '48'], refine=True)
    found = run(networks, source, 8, 8, **flags)
    assert_same(found, run(networks, source, 1, 4, **flags))
    assert all(np.isfinite(x.found.boxes).all() for x in found) and len(found) == 11


def test_detections_of_images_without_categories_count_from_1(paths, tmp_path, plain):
    file, folder = tmp_path / 'found.json', tmp_path / 'comp4'
    flags = {'detections': str(file)}
    evaluation.evaluate(paths[:1], None, 0, flags, ['detections'])
    rows = json.loads(file.read_text())
    assert len(rows) == sum(len(x.found.scores) for x in plain)
    assert {row['image_id'] for row in rows} == set(range(1, 12))
    first = plain[0].found
    assert rows[0]['category_id'] == first.classes[0] + 1
    x1, y1, x2, y2 = first.boxes[0]
    assert rows[0]['bbox'] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=2e-3)
    evaluation.evaluate(paths[:1], None, 0, {'detections': str(folder)}, ['detections'])
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f'comp4_det_test_{name}.txt' for name in NAMES)
    lines = [line for path in folder.iterdir() for line in path.read_text().splitlines()]
    assert len(lines) == len(rows) and {line.split()[0] for line in lines} == {
        str(i) for i in range(11)}


def test_numbers_of_coco_are_kept(paths, tmp_path, source, monkeypatch):
    monkeypatch.setattr(source, 'category_ids', np.array([7, 9, 90]), raising=False)
    file = tmp_path / 'found.json'
    evaluation.evaluate(paths[:1], None, 0, {'detections': str(file)}, ['detections'])
    rows = json.loads(file.read_text())
    assert {row['image_id'] for row in rows} == set(range(11))
    assert {row['category_id'] for row in rows} <= {7, 9, 90}


class Files:
    """The scenes as PNG files, the second of them damaged."""

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        item, file = self.source[index], io.BytesIO()
        Image.fromarray(np.repeat(item.image, 3, -1)).save(file, 'PNG')
        content = file.getvalue()[:200] if index == 1 else file.getvalue()
        return Item(content, item.target, f'folder/image {index}.png')


def test_files_are_decoded_and_damaged_ones_left_out(networks, source, plain, capsys):
    found = run(networks[:1], Files(source))
    assert_same(found, [x for x in plain if x.index != 1])
    assert found[1].name == 'image 2'
    assert 'image 1.png' in capsys.readouterr().err
    several = run(networks[:1], Files(source), protocol='multi_scale', scales=['32', '48'])
    assert_same(several, [x for x in run(networks[:1], source, protocol='multi_scale',
                                         scales=['32', '48']) if x.index != 1])
    with pytest.raises(UserError, match='no images to evaluate on'):
        run(networks[:1], [Files(source)[1]])


def test_every_process_has_the_images_of_all(networks, source, plain, monkeypatch):
    parts = []
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    monkeypatch.setattr(testing, '_of_all_processes', lambda value: parts.append(value) or parts)
    for index in (1, 0):
        monkeypatch.setattr(jax, 'process_index', lambda index=index: index)
        found = run(networks[:1], source)
    assert [len(part) for part in parts] == [5, 6]
    assert_same(found, plain)


def test_values_of_unequal_length_are_gathered(monkeypatch):
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    sent = []

    def gather(x):
        sent.append(np.asarray(x))
        return np.stack([np.asarray(x)] * 2)

    monkeypatch.setattr(multihost_utils, 'process_allgather', gather)
    assert testing._of_all_processes([1, 'two']) == [[1, 'two']] * 2
    assert sent[0] == len(sent[1])


@pytest.mark.parametrize('flags, sentence', [
    ({'protocol': 'ten_crop'}, '--protocol=ten_crop is for classifiers; for detectors it is '),
    ({'protocol': 'center_crop'}, '--protocol=center_crop is for classifiers'),
    ({'scales': ['32']}, '--scales is for --protocol=multi_scale'),
    ({'protocol': 'multi_scale', 'scales': ['a']}, '--scales must be numbers .* got a'),
    ({'protocol': 'multi_scale', 'scales': ['0']}, '--scales must be at least 1, got 0'),
    ({'confusion': 'file'}, '--confusion does not apply to the task detection'),
    ({'resize': 40}, '--resize does not apply to the task detection'),
    ({'detections': '/nowhere/found.json'}, 'there is no folder /nowhere; make it first'),
    ({'detections': 'found.csv'}, '--detections must be a file that ends in .json'),
    ({'detections': 'tests'}, None),
])
def test_wrong_flags_are_told_before_anything_is_computed(flags, sentence, paths, monkeypatch):
    monkeypatch.setattr(testing, 'run', lambda *args, **options: pytest.skip('accepted'))
    if sentence is None:  # a folder that exists is fine: its files are replaced
        with pytest.raises(pytest.skip.Exception):
            evaluation.evaluate(paths[:1], None, 0, flags, list(flags))
        return
    with pytest.raises(UserError, match=sentence):
        evaluation.evaluate(paths[:1], None, 0, flags, list(flags))


def test_networks_of_an_ensemble_know_the_same_classes(paths, tmp_path, source):
    named = str(store(tmp_path / 'named', 0, names=NAMES))
    other = str(store(tmp_path / 'other', 0, names=['cat', 'owl', 'cow']))
    with pytest.raises(UserError, match="different classes, such as 'owl' and 'dog'"):
        evaluation.evaluate([named, other], None, 0, {}, [])
    protocols.check_networks(  # a network without names may join
        [resnet_jax.load(path) for path in (paths[0], named)], ['a', 'b'], source)
    ten = types.SimpleNamespace(most_objects=4, num_classes=10)
    with pytest.raises(UserError, match=r'a was trained on 3 classes, but the data has 10\.'):
        protocols.check_networks([resnet_jax.load(named)], ['a'], ten)
    with_gap = str(store(tmp_path / 'with_gap', 0, names=['cat', 'N/A', 'cow']))
    with pytest.raises(UserError, match='has 10; its classes are the category ids 1 to 90 of COCO'):
        protocols.check_networks([resnet_jax.load(with_gap)], ['a'], ten)
    with pytest.raises(UserError, match='the data has no boxes'):
        protocols.check_networks([resnet_jax.load(named)], ['a'],
                                 types.SimpleNamespace(num_classes=3))


def test_what_was_not_measured_is_null(plain):
    config = detector_config()
    config.model.num_classes = 4
    values = protocols._report(plain, [*NAMES, 'owl'], 12, config)
    assert values.values['eval/class_ap'][3] is None
    assert values.text.splitlines()[0].endswith('on 11 images; 1 could not be read')
    assert values.text.splitlines()[-1].split() == ['owl', '-', '0']
    assert metrics.line({'ap': 1.0}) == 'AP 1.00'
