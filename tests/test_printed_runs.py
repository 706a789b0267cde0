"""The commands of the documents do what they say, as printed, on tiny networks and few images.

Each is run as it is printed, followed by flags that make it small; they run in the order of the
documents, and read what those before them in their session have written.
"""

import pathlib
import pickle
import re

import numpy as np
import PIL.Image
import pytest
from safetensors.numpy import save_file

from resnet_jax.data.digits import digits
from tests import xla_options
from tests.data.data_helpers import photograph, write_folder
from tests.printed import as_printed
from tests.tasks.localization import few_boxes
from tests.weights import random_weights, test_detectron2, test_fpn_names

ROOT = pathlib.Path(__file__).parent.parent
RUN = 'python -m resnet_jax.'
MAIN = RUN + 'main --config=configs/'
EXAMPLES = 'python -m experiments.examples --checkpoint=runs/'
SHORT = ('--config.num_steps=2 --config.mesh.data=1 --config.compilation_cache= '
         '--config.schedule.warmup=none --config.schedule.name=constant --config.data.cache= ')
CIFAR = SHORT + '--config.model.depth=8 --config.model.width=4 --config.batch_size=64 '
IMAGES = SHORT + ('--config.batch_size=4 --config.eval.batch_size=4 --config.data.image_size=32 '
                  '--config.model.virtual_batch_size=4 ')
DETECTOR = ('--config.batch_size=4 --config.eval.batch_size=64 '
            '--config.model.virtual_batch_size=4 --config.model.detector.rpn_features=8 '
            '--config.model.detector.rpn_pre_nms=(40,30) '
            '--config.model.detector.rpn_post_nms=(16,12) '
            '--config.model.detector.rpn_batch=16 --config.model.detector.roi_batch=8 '
            '--config.data.image_size=32 ')
SCENES = CIFAR + DETECTOR + '--config.data.source=tests.tasks.detection.few_scenes '
LOCAL = SHORT + ('--config.model.family=cifar --config.model.depth=8 --config.model.width=8 '
                 '--config.model.shortcut=A --config.model.num_classes=6 --config.batch_size=8 '
                 '--config.eval.batch_size=8 --config.model.virtual_batch_size=8 '
                 '--config.data.image_size=32 ')
RECIPE = (IMAGES + '--config.data.source=folder --config.data.path=DIR --config.model.width=8 '
          '--config.model.num_classes=7 --config.model.depth=18 ')
BCCD = (SHORT + DETECTOR + '--config.data.path=voc --config.data.train_list=train '
        '--config.data.eval_list=test --config.model.width=8 --config.model.num_classes=6 '
        '--config.model.detector.anchor_sizes=(9,16) --config.model.detector.roi_size=4 ')
BOXES = LOCAL + ('--config.model.localizer.anchor_sizes=(10,20) '
                 '--config.model.localizer.anchor_ratios=(0.7,1.4) --config.data.path=boxes ')
SESSIONS = {  # the command as it is printed; what makes it small
    # README, docs/train.md, docs/evaluate.md, docs/seeing.md, docs/checkpoints.md
    'digits': (
        (MAIN + 'digits_r20.py --workdir=runs/digits', CIFAR),
        (MAIN + 'digits_r20.py', CIFAR),
        (MAIN + 'digits_plain.py', CIFAR),
        (MAIN + 'digits_r20.py --workdir=runs/digits56 --config.model.depth=56 '
         '--config.schedule.learning_rate=0.05 --config.seed=1', CIFAR),
        (MAIN + 'digits.py --workdir=runs/digits56 --config.model.depth=56',
         CIFAR + '--workdir=runs/digits_of_any_depth'),
        (RUN + 'evaluate --workdir=runs/digits', ''),
        (RUN + 'evaluate --workdir=runs/digits_r20', ''),
        (RUN + 'predict --checkpoint=runs/digits --json --top=1 digit.png', ''),
        (RUN + 'summary --config=configs/imagenet_r50.py', ''),
        (RUN + 'summary --config=configs/imagenet_r152.py', ''),
        (RUN + 'summary --config=configs/digits_r20.py --config.model.depth=56', ''),
    ),
    # README, docs/evaluate.md, docs/data.md
    'weights of others, and own images': (
        (RUN + 'convert --input=resnet50.safetensors --output=weights/r50', ''),
        (RUN + 'convert --input=resnet101.safetensors --output=weights/r101', ''),
        (RUN + 'evaluate --checkpoint=weights/r50 --config=configs/imagenet_r50.py '
         '--protocol=ten_crop', '--config.data.source=folder --config.data.path=DATA'),
        (RUN + 'evaluate --config=configs/imagenet_r50.py --config.data.path=DATA '
         '--checkpoint=weights/r50 --protocol=ten_crop', '--config.data.source=folder'),
        (RUN + 'evaluate --config=configs/imagenet_r50.py --config.data.path=DATA '
         '--checkpoint=weights/r50 --checkpoint=weights/r101 --protocol=multi_scale',
         '--config.data.source=folder --scales=64,96'),
        (RUN + 'predict --checkpoint=weights/r50 photo.jpg', ''),
        (RUN + 'predict --checkpoint=weights/r50 cat.jpg photos/', ''),
        (RUN + 'export --checkpoint=weights/r50 --output=r50.stablehlo', ''),
        (RUN + 'export --checkpoint=weights/r50 --output=r50.safetensors', ''),
        (MAIN + 'folder.py --config.data.path=DIR', IMAGES + '--config.model.width=8'),
        (MAIN + 'finetune.py --config.init.checkpoint=weights/r50 --config.data.path=DIR',
         IMAGES + '--config.eval.batch_size=7'),
        (RUN + 'predict --checkpoint=runs/finetune photo.jpg', ''),
        (RUN + 'evaluate --workdir=runs/finetune --config=configs/finetune.py '
         '--config.data.path=OTHERS', '--config.data.path=DATA'),
        (MAIN + 'imagenet_r50.py', RECIPE + '--workdir=runs/r50'),
        (MAIN + 'imagenet_r50.py --workdir=runs/lower '
         '--config.init.resume_from=runs/r50/checkpoints/120000 '
         '--config.schedule.learning_rate=0.05',
         RECIPE + '--config.init.resume_from=runs/r50/checkpoints/2 --config.num_steps=4'),
        (RUN + 'data.prepare --path=IMAGENET --output=DIR --shorter_side=256',
         '--output=shards --shorter_side=32'),
        (RUN + 'data.prepare --path=IMAGENET --output=imagenet256 --shorter_side=256',
         '--shorter_side=32'),
        (RUN + 'data.check --source=shards --path=DIR', '--path=shards'),
        (RUN + 'data.check --source=shards --path=imagenet256', ''),
        (RUN + 'data.check --benchmark --config=configs/imagenet_r50.py '
         '--config.data.source=shards --config.data.path=imagenet256', '--images=8'),
    ),
    # docs/detection.md
    'detectors': (
        (MAIN + 'scenes_digits.py', CIFAR + '--config.data.source=digits '
         '--config.data.image_size=8 --config.eval.batch_size=64'),
        (MAIN + 'scenes_r20.py --config.init.checkpoint=runs/scenes_digits', SCENES),
        (MAIN + 'scenes_mask_r20.py --config.init.checkpoint=runs/scenes_digits', SCENES),
        (MAIN + 'scenes_cascade_r20.py --config.init.checkpoint=runs/scenes_digits', SCENES),
        (EXAMPLES + 'scenes_r20 --images=0,1,2,3 --columns=4 --output=docs/detection/scenes.png',
         '--images=0 --output=scenes.png'),
        (EXAMPLES + 'scenes_mask_r20 --output=docs/detection/scenes_masks.png',
         '--images=0,1 --output=scenes_masks.png'),
        (RUN + 'evaluate --workdir=runs/mine', ''),
        (RUN + 'predict --checkpoint=runs/mine --draw=pictures photos/', ''),
        (RUN + 'export --checkpoint=runs/mine --output=mine.stablehlo', ''),
        (RUN + 'evaluate --workdir=runs/mine --refine', ''),
        (RUN + 'evaluate --workdir=runs/mine --protocol=multi_scale '
         '--scales=400,600,800', '--scales=32,48'),
        (RUN + 'evaluate --checkpoint=runs/a --checkpoint=runs/b '
         '--detections=found.json', ''),
        (EXAMPLES + 'mine --output=found.png', '--images=0'),
        ('python -m experiments.detection_errors --checkpoint=runs/mine --output=errors.png', ''),
        (RUN + 'summary --config=configs/coco_r50_c4.py', ''),
        (RUN + 'data.prepare --source=scenes --format=voc --output=DIR',
         '--source=tests.tasks.detection.few_scenes --output=voc'),
        (RUN + 'data.check --source=voc --path=DIR', '--path=voc'),
        (MAIN + 'bccd_r18.py --workdir=runs/mine --config.data.path=DIR '
         '--config.data.train_list=train --config.data.eval_list=val',
         BCCD + '--workdir=runs/voc'),
        (MAIN + 'bccd_r18.py --config.data.path=bccd', BCCD),
        (EXAMPLES + 'bccd_r18 --images=0,12,24,36,48,60 --width=480 '
         '--output=docs/detection/bccd.jpg', '--images=0 --output=bccd.jpg'),
        (MAIN + 'bccd_r18.py --config.data.path=DIR', BCCD),
        (RUN + 'data.prepare --source=voc --path=VOCdevkit/VOC2007 --format=coco --output=DIR',
         '--path=voc --output=coco'),
        (RUN + 'data.check --source=voc --path=bccd --train_list=train+val --eval_list=test',
         '--path=voc --train_list=train'),
        (MAIN + 'nuclei_r20.py --config.data.path=nuclei', SCENES + '--config.data.short_sides=() '
         '--config.data.window=none --config.model.num_classes=10 '
         '--config.model.detector.mask_features=8 --config.model.detector.anchor_sizes=(9,16)'),
        (EXAMPLES + 'nuclei_r20 --images=0,1,4,13,67,47 --output=docs/detection/nuclei.jpg',
         '--images=0 --output=nuclei.jpg'),
    ),
    # docs/detection.md
    'detectors of others': (
        (RUN + 'convert --input=fasterrcnn_resnet50_fpn_coco-258fb6c6.pth --output=weights/fpn',
         ''),
        (RUN + 'predict --checkpoint=weights/fpn --draw=pictures photos/', ''),
        (RUN + 'export --checkpoint=weights/fpn --output=fpn.safetensors', ''),
        (RUN + 'convert --input=model_final_f10217.pkl --output=weights/mask', ''),
        (RUN + 'predict --checkpoint=weights/mask --draw=pictures photos/', ''),
    ),
    # docs/localization.md
    'localizers': (
        (MAIN + 'tiny_loc_classifier.py --config.data.path=DIR',
         LOCAL + '--config.data.path=boxes'),
        (MAIN + 'tiny_loc.py --config.data.path=DIR '
         '--config.init.checkpoint=runs/tiny_loc_classifier', BOXES),
        (MAIN + 'tiny_loc_rcnn.py --config.data.path=DIR --config.init.checkpoint=runs/tiny_loc',
         BOXES + '--config.model.localizer.proposals=6 --config.model.localizer.crop_size=16'),
        (RUN + 'evaluate --workdir=runs/tiny_loc', ''),
        (EXAMPLES + 'tiny_loc --images=0,150,300,450,600,750 --width=240 '
         '--output=docs/localization/tiny.jpg', '--images=0 --output=tiny.jpg'),
        (RUN + 'evaluate --workdir=runs/tiny_loc_rcnn', ''),
        (RUN + 'predict --checkpoint=runs/tiny_loc_rcnn --draw=pictures photo.jpg', ''),
    ),
    # docs/extending.md
    'own parts': (
        (RUN + 'data.check --source=my_package.npz_source --path=DIR', '--path=npz'),
        (MAIN + 'digits_r20.py --workdir=runs/npz --config.data.source=my_package.npz_source '
         '--config.data.path=DIR', CIFAR + '--config.data.path=npz'),
        (RUN + 'main --config=tests/tasks/brightness_config.py '
         '--workdir=runs/brightness', '--config.num_steps=2'),
        (RUN + 'evaluate --workdir=runs/brightness', ''),
        (RUN + 'predict --checkpoint=runs/brightness photo.jpg', ''),
        (RUN + 'main --config=tests/models/se_config.py --workdir=runs/se',
         '--config.num_steps=2'),
        (RUN + 'export --checkpoint=runs/se --output=se.safetensors', ''),
        (RUN + 'convert --family=tests.models.se_resnet --input=se.safetensors '
         '--output=weights/se', ''),
        (RUN + 'predict --checkpoint=weights/se digit.png', ''),
    ),
}
RUNS = tuple(run for session in SESSIONS.values() for run in session)


def prepare(folder: pathlib.Path) -> None:
    """Writes what the documents take for granted: photographs, data sets and weights."""
    for name in ('configs', 'tests'):
        (folder / name).symlink_to(ROOT / name)
    for name in ('photo.jpg', 'cat.jpg', 'photos/one.jpg', 'scenes/one.jpg'):
        (folder / name).parent.mkdir(exist_ok=True)
        PIL.Image.fromarray(photograph(40, 56)).save(folder / name)
    PIL.Image.fromarray(np.full((8, 8), 40, np.uint8)).save(folder / 'digit.png')
    classes = [f'class{i}' for i in range(7)]
    for name in ('DIR', 'DATA', 'IMAGENET'):
        write_folder(folder / name, classes, images=2, splits=('train', 'val'))
    few_boxes.write(folder / 'boxes')
    block, = re.findall(r'^```python\n(.*?)^```$', (ROOT / 'docs' / 'extending.md').read_text(),
                        re.MULTILINE | re.DOTALL)
    (folder / 'my_package').mkdir()
    (folder / 'my_package' / 'npz_source.py').write_text(block)
    (folder / 'npz').mkdir()
    for split in ('train', 'test'):
        source = digits(split)
        np.savez(folder / 'npz' / f'{split}.npz', images=source.images, labels=source.labels)
    fields = random_weights.fields()
    for name in ('resnet50', 'resnet101'):
        save_file(random_weights.tensors(fields), folder / f'{name}.safetensors')
    (folder / 'runs').mkdir()
    for name in ('mine', 'a', 'b'):
        (folder / 'runs' / name).symlink_to('scenes_r20')


def write_detectors(folder: pathlib.Path) -> None:
    """Writes narrow detectors under the names that torchvision and detectron2 give to theirs."""
    torch = pytest.importorskip('torch', reason="needs PyTorch: pip install -e '.[torch]'")
    torch.save({name: torch.from_numpy(tensor) for name, tensor in
                test_fpn_names.tensors().items()},
               folder / 'fasterrcnn_resnet50_fpn_coco-258fb6c6.pth')
    (folder / 'model_final_f10217.pkl').write_bytes(
        pickle.dumps({'model': test_detectron2.tensors('fpn')}, 2))


@pytest.mark.slow
@pytest.mark.parametrize('session', SESSIONS)
def test_the_commands_of_the_documents_run_one_after_the_other(session, commands, tmp_path):
    prepare(tmp_path)
    if session == 'detectors of others':
        write_detectors(tmp_path)
    env = {'XLA_FLAGS': xla_options.quick(devices=1)}
    for text, more in SESSIONS[session]:
        done = commands.run(*as_printed(text, more), cwd=tmp_path, env=env)
        assert done.status == 0, f'{text}\n{done.output}\n{done.errors}'
        assert done.output, text


@pytest.mark.slow
@pytest.mark.parametrize('words', [
    as_printed('pip install -r requirements.txt -e .[cuda]'),
    as_printed('pip install -r requirements.txt -e .[tpu]'),
    as_printed('pip install -r requirements.txt -r experiments/requirements.txt '
               '-e .[experiments]'),
    as_printed('pip install -e .[gcs]'),
    as_printed('pip install -e .[hub]'),
    as_printed('pip install -e .[s3]'),
    as_printed('pip install -e .[test]'),
    as_printed('pip install -e .[torch]'),
    as_printed('pip install torch torchvision onnx onnxscript'),
], ids=' '.join)
def test_pip_finds_what_it_is_told_to_install(words, commands):
    """Without a network, the dependencies, and changing anything."""
    done = commands.run('pip', *words, '--dry-run', '--no-deps', '--no-index',
                        '--no-build-isolation', '--disable-pip-version-check')
    if 'No matching distribution' in done.errors or 'No module named' in done.errors:
        pytest.skip(done.errors.strip().splitlines()[-1])
    assert done.status == 0, done.errors
    assert 'does not provide the extra' not in done.errors
    assert 'Would install' in done.output or 'already satisfied' in done.output
