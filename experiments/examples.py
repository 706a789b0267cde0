"""Draws what a detector or a localizer finds in some images of its test data, in one picture.

  python -m experiments.examples --checkpoint=runs/scenes_r20 --output=scenes.png
  python -m experiments.examples --checkpoint=runs/bccd_r18 --images=0,1,2,3 --columns=2 \\
      --output=bccd.jpg

Objects are drawn as by `resnet_jax.predict --draw`, and the pictures laid side by side as by
`experiments.gallery`.
"""

from absl import flags

from experiments import gallery, pictures
from resnet_jax import cli
from resnet_jax.errors import UserError

CONFIG = cli.config_flag()
CHECKPOINT = cli.flag(
    flags.DEFINE_string, 'checkpoint', None,
    'Folder of a run or of converted weights. The data is that of --config if given, otherwise '
    'that of the run.')
IMAGES = cli.flag(
    flags.DEFINE_list, 'images', [str(i) for i in range(6)],
    'Images to draw, by their numbers among those of the test split, from 0.')
MIN_SCORE = cli.flag(
    flags.DEFINE_float, 'min_score', 0.5, '(detectors) Least score of an object, from 0 to 1.',
    lower_bound=0.0, upper_bound=1.0)
flags.adopt_module_key_flags(gallery)


def main(_) -> None:
    import jax

    from resnet_jax import data
    from resnet_jax.data.decode import decode
    from resnet_jax.tasks.loading import load_all
    from resnet_jax.training.evaluation import data_config
    from resnet_jax.xla import backend, compilation_cache

    path = pictures.output(gallery.OUTPUT.value, gallery.FORMATS)
    backend.devices()
    task, networks = load_all([CHECKPOINT.value])
    predictor = task.predictor and task.predictor(
        networks, {'top': 1, 'min_score': MIN_SCORE.value})
    if predictor is None or predictor.draw is None:
        raise UserError(f'the answers of {CHECKPOINT.value} cannot be drawn: it is no detector or '
                        'localizer.')
    config = data_config(CONFIG.value, networks, [CHECKPOINT.value])
    compilation_cache.use(config.compilation_cache)
    source = data.create_eval_source(config)
    drawn = []
    for number in numbers(IMAGES.value, len(source)):
        item = source[number]
        answer, = predictor.answer(jax.tree.map(lambda x: x[None], predictor.load(item)))
        image = decode(item.image, item.name) if isinstance(item.image, bytes) else item.image
        drawn.append(predictor.draw(image, answer))
    gallery.write(path, drawn)


def numbers(texts: list[str], count: int) -> list[int]:
    """The numbers of the images.

    Raises:
      UserError: one is no number of one of `count` images.
    """
    for text in texts:
        if not text.isdecimal() or int(text) >= count:
            raise UserError(f'--images must be numbers from 0 to {count - 1}, separated by commas; '
                            f'got {text!r}.')
    if not texts:
        raise UserError('--images is empty: give numbers of images, such as --images=0,1,2.')
    return [int(text) for text in texts]


if __name__ == '__main__':
    cli.run(main, needs=['--checkpoint=DIR', '--output=FILE.jpg'])
