"""Finds image files, decodes them ahead of the devices, and has them predicted in batches."""

import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from resnet_jax.data import Item
from resnet_jax.data.decode import image_format
from resnet_jax.data.folder import EXTENSIONS
from resnet_jax.errors import UserError
from resnet_jax.tasks.task import Answer, Predictor

BATCH_SIZE = 16  # images that are computed, and printed, at once
STDIN = '-'
File = tuple[str, bytes | None]  # its name, and its bytes where they came on standard input


def find_files(arguments: Sequence[str]) -> tuple[list[File], list[Exception]]:
    """Finds the files that the arguments name, in order.

    Folders stand for the images in them and in their folders, by name; '-' for standard input,
    which is an image or a list of files, one per line.

    Returns:
      The files, and what is wrong with the other arguments.
    """
    files, failures = [], []
    for argument in arguments:
        path = pathlib.Path(argument)
        if argument == STDIN:
            content = sys.stdin.buffer.read()
            try:
                image_format(content)
                files.append(('standard input', content))
            except ValueError:
                names = content.decode(errors='surrogateescape').splitlines()
                files += [(name, None) for name in names if name]
        elif path.is_dir():
            found = sorted(child for child in path.rglob('*')
                           if child.suffix.lower() in EXTENSIONS and child.is_file())
            files += [(str(child), None) for child in found]
            if not found:
                failures.append(UserError(f'{argument} contains no images.'))
        else:
            files.append((argument, None))
    return files, failures


def predictions(predictor: Predictor,
                files: Sequence[File]) -> Iterator[tuple[str, Answer | Exception]]:
    """Yields (name, the prediction or the problem with the file), in order.

    The next images are decoded while these are computed. All batches of one image shape have one
    size, so that one program serves them.
    """
    size = min(BATCH_SIZE, 1 << (len(files) - 1).bit_length())
    with ThreadPoolExecutor() as pool:
        def start(position):
            return [pool.submit(_load, file, predictor) for file in files[position:position + size]]

        loading = start(0)
        for position in range(0, len(files), size):
            loaded = [future.result() for future in loading]
            loading = start(position + size)
            answers = _answers(predictor, loaded, size)
            for row, (name, _) in enumerate(files[position:position + size]):
                yield name, answers[row]


def _answers(predictor: Predictor, loaded: Sequence[np.ndarray | Exception],
             size: int) -> dict[int, Answer | Exception]:
    """What is predicted of each image, by its place; errors stay as they are."""
    answers = {row: image for row, image in enumerate(loaded) if isinstance(image, Exception)}
    shapes = {image.shape for image in loaded if not isinstance(image, Exception)}
    for shape in sorted(shapes):
        rows = [row for row, image in enumerate(loaded)
                if row not in answers and image.shape == shape]
        images = [loaded[row] for row in rows]
        batch = np.stack(images + images[-1:] * (size - len(images)))
        answers |= dict(zip(rows, predictor.answer(batch), strict=False))
    return answers


def _load(file: File, predictor: Predictor) -> np.ndarray | Exception:
    """The image as the network is given it, or the error that says what is wrong."""
    name, content = file
    try:
        return predictor.load(
            Item(pathlib.Path(name).read_bytes() if content is None else content, {}, name))
    except OSError as error:
        return UserError(f'{name} cannot be read: {os.strerror(error.errno)}.')
    except UserError as error:
        return error
