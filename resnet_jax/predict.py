"""Predicts the classes of images.

  python -m resnet_jax.predict --checkpoint=weights/resnet50 cat.jpg photos/
  cat cat.jpg | python -m resnet_jax.predict --checkpoint=weights/resnet50 -
  find photos -name '*.jpg' | python -m resnet_jax.predict --checkpoint=weights/resnet50 -

Accepts image files, folders, and - for standard input, which is an image or a list of files, one
per line. Prints a table, or one JSON object per line with --json: `file` and `classes`, each with
`index`, `name` and `probability`. Bytes of file names that are not UTF-8 are written as
\\xNN. Files that cannot be read are reported on stderr, and the exit status is then 1; all other
files are still predicted.
"""

import json
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from absl import flags

from resnet_jax import cli
from resnet_jax.errors import UserError, readable

CHECKPOINT = cli.flag(
    flags.DEFINE_multi_string, 'checkpoint', [],
    'Folder of a run or of converted weights, or one checkpoint of a run, RUN/checkpoints/STEP. '
    'Several form an ensemble.')
TOP = cli.flag(
    flags.DEFINE_integer, 'top', 5, 'Number of classes to print, most probable first.',
    lower_bound=1)
JSON = cli.json_flag()

BATCH_SIZE = 16  # images that are computed, and told, at once
STDIN = '-'


def main(argv: Sequence[str]) -> int:
    from resnet_jax.tasks.classification import classifier
    from resnet_jax.xla import backend, compilation_cache

    if not CHECKPOINT.value:
        raise UserError(cli.give('--checkpoint=DIR, a workdir or converted weights', __name__))
    files, failures = find_files(argv[1:])
    if not files and not failures:
        raise UserError('give image files, folders of them, or - for standard input.')
    backend.devices()
    networks = [classifier.load(path) for path in CHECKPOINT.value]
    classes = class_names(networks)
    compilation_cache.use(networks[0].config.compilation_cache)
    for failure in failures:
        report(failure)
    for name, probabilities in predictions(networks, files):
        if isinstance(probabilities, Exception):
            failures.append(probabilities)
            report(probabilities)
        elif JSON.value:
            print(json.dumps({'file': readable(name), 'classes': best(
                probabilities, classes, TOP.value)}), flush=True)
        else:
            print(readable(name))
            for guess in best(probabilities, classes, TOP.value):
                print(f'  {100 * guess["probability"]:6.2f} %  {guess["name"]}', flush=True)
    return 1 if failures else 0


def report(failure: Exception) -> None:
    """A line on stderr."""
    print(f'error: {readable(str(failure))}', file=sys.stderr, flush=True)


def class_names(networks: Sequence) -> Sequence[str]:
    """The names of the classes that all networks have; those without names have numbers.

    Raises:
      UserError: the networks know different classes.
    """
    numbers = tuple(map(str, range(len(networks[0].classes))))
    names = {network.classes for network in networks} - {numbers}
    if len(names) > 1 or len({len(network.classes) for network in networks}) > 1:
        raise UserError('the checkpoints are not an ensemble: their classes differ.')
    return names.pop() if names else numbers


def find_files(arguments: Sequence[str]) -> tuple[list[tuple[str, bytes | None]], list[Exception]]:
    """The files that arguments mean, in order, with their bytes if these came on standard input.

    Folders stand for the images in them and in their folders, by name.

    Returns:
      The files, and what was wrong with the other arguments.
    """
    from resnet_jax.data.decode import image_format
    from resnet_jax.data.folder import EXTENSIONS

    files, failures = [], []
    for argument in arguments:
        path = pathlib.Path(argument)
        if argument == STDIN:
            data = sys.stdin.buffer.read()
            try:
                image_format(data)
                files.append(('standard input', data))
            except ValueError:
                names = data.decode(errors='surrogateescape').splitlines()
                files += [(name, None) for name in names if name]
        elif path.is_dir():
            found = sorted(child for child in path.rglob('*')
                           if child.suffix.lower() in EXTENSIONS and child.is_file())
            files += [(str(child), None) for child in found]
            if not found:
                failures.append(UserError(f'{argument} holds no images.'))
        else:
            files.append((argument, None))
    return files, failures


def predictions(networks, files) -> Iterator[tuple[str, object]]:
    """(name, probabilities float32 [classes] or what was wrong with the file), in order.

    The next images are decoded while these are computed. A batch has always as many images, so
    that one program serves.
    """
    import numpy as np

    from resnet_jax.data.transforms import EvalTransform

    data = networks[0].config.data
    transform = EvalTransform(data.image_size, data.eval_resize or data.image_size)
    size = min(BATCH_SIZE, 1 << (len(files) - 1).bit_length())
    with ThreadPoolExecutor() as pool:
        def start(position):
            return [pool.submit(load, file, transform, data.channels)
                    for file in files[position:position + size]]

        loading = start(0)
        for position in range(0, len(files), size):
            loaded = [future.result() for future in loading]
            loading = start(position + size)
            images = [image for image in loaded if not isinstance(image, Exception)]
            answers = iter(())
            if images:
                batch = np.stack(images + images[-1:] * (size - len(images)))
                answers = iter(np.mean([network.predict(batch) for network in networks], 0))
            for (name, _), image in zip(files[position:position + size], loaded, strict=True):
                yield name, image if isinstance(image, Exception) else next(answers)


def load(file: tuple[str, bytes | None], transform, channels: int):
    """uint8 [H, W, channels] as the network sees it, or the error that says what is wrong."""
    import numpy as np

    from resnet_jax.data.sources import Item

    name, data = file
    try:
        image = transform(Item(pathlib.Path(name).read_bytes() if data is None else data, 0, name))
    except OSError as error:
        return UserError(f'{name} cannot be read: {os.strerror(error.errno)}.')
    except UserError as error:
        return error
    if channels == 1:
        # ITU-R 601, as Pillow turns colours into grey.
        grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
        return np.round(grey).astype(np.uint8)[:, :, None]
    return image


def best(probabilities, classes: Sequence[str], count: int) -> list[dict]:
    """The most probable classes: 'index', 'name' and 'probability'."""
    order = probabilities.argsort(kind='stable')[::-1][:count]
    return [{'index': int(i), 'name': classes[i], 'probability': float(probabilities[i])}
            for i in order]


if __name__ == '__main__':
    cli.run(main, takes_files=True)
