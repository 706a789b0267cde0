"""The paper's CIFAR recipe in PyTorch, with which `cifar.py` compares this project.

    python experiments/benchmarks/torch_cifar.py --recipe=recipe.json --data=data.npz --workdir=DIR

A self-contained program that imports nothing from the project. Network, augmentation, schedule,
warm-up and evaluation are those of `configs/cifar10*.py`; batch normalisation is over the whole
batch. The update is the paper's, with the learning rate inside the momentum. `cifar.py` writes the
recipe and the images, including this project's mean image.

Plain: uint8 images in memory, augmented one by one in the worker processes of a DataLoader;
float32, channels-last, eager. With --fair: images and augmentation on the device, bfloat16, and the
whole step as one CUDA graph (on CPU: the same step, eager, in float32).

Both save their state on SIGTERM, with exit status 143, and at the end, and resume from it.
`metrics.jsonl` in the workdir has one row per evaluation.
"""

import argparse
import json
import math
import pathlib
import signal
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch_twin import ResNet

WARMUP_STEPS = 3  # of the CUDA graph, on a stream of its own


class Images(torch.utils.data.Dataset):
    """Training images, augmented one by one (section 4.2)."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, mean: np.ndarray, std: np.ndarray,
                 recipe: dict):
        self.images, self.labels, self.mean, self.std = images, labels, mean, std
        self.padding, self.flip = recipe['crop_padding'], recipe['flip']

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        image = (self.images[index].astype(np.float32) / 255 - self.mean) / self.std
        height, width = image.shape[:2]
        pad, draws = self.padding, torch.randint(2 * self.padding + 1, (2,)).tolist()
        image = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
        image = image[draws[0]:draws[0] + height, draws[1]:draws[1] + width]
        if self.flip and torch.rand(()) < 0.5:
            image = image[:, ::-1]
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), self.labels[index]


class EndlessOrder(torch.utils.data.Sampler):
    """One permutation of the images after another, from any position on."""

    def __init__(self, num_images: int, seed: int, start: int):
        self.num_images, self.seed, self.start = num_images, seed, start

    def __iter__(self):
        epoch, offset = divmod(self.start, self.num_images)
        while True:
            yield from permutation(self.num_images, self.seed, epoch)[offset:].tolist()
            epoch, offset = epoch + 1, 0


def permutation(num_images: int, seed: int, epoch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(num_images, generator=generator)


class PaperSGD:
    """v <- momentum * v + rate * (g + decay * w), w <- w - v; the rate lies on the device."""

    def __init__(self, network: nn.Module, momentum: float, decay: float, device: str):
        self.params = list(network.parameters())
        self.velocity = [torch.zeros_like(p) for p in self.params]
        self.rate = torch.zeros((), device=device)
        self.momentum, self.decay = momentum, decay

    @torch.no_grad()
    def step(self) -> None:
        grads = torch._foreach_add([p.grad for p in self.params], self.params, alpha=self.decay)
        torch._foreach_mul_(self.velocity, self.momentum)
        torch._foreach_add_(self.velocity, torch._foreach_mul(grads, self.rate))
        torch._foreach_sub_(self.params, self.velocity)


class Schedule:
    """The rate of a step: the paper's boundaries, and its warm-up until the error falls."""

    def __init__(self, recipe: dict):
        self.recipe, self.warm = recipe, recipe['warmup'] != 'error'

    def rate(self, step: int) -> float:
        recipe = self.recipe
        rate = recipe['learning_rate'] * recipe['factor'] ** sum(
            step >= boundary for boundary in recipe['boundaries'])
        if not self.warm:
            rate *= recipe['warmup_learning_rate'] / recipe['learning_rate']
        return rate

    def after(self, step: int, trainer: 'Trainer') -> None:
        """Looks at the training error of the last window, at its end."""
        window = self.recipe['warmup_window']
        if not self.warm and step % window == 0:
            error = 100 * float(trainer.wrong) / (window * self.recipe['batch_size'])
            self.warm = error < self.recipe['warmup_error']
            trainer.wrong.zero_()


class Trainer:
    """Network, optimizer, and one step of each kind."""

    def __init__(self, recipe: dict, data: dict[str, np.ndarray], fair: bool):
        self.recipe, self.fair = recipe, fair
        self.device = 'cuda' if torch.cuda.is_available() else 'cpu'
        torch.manual_seed(recipe['seed'])
        torch.backends.cudnn.benchmark = True
        self.network = ResNet(recipe, data['train_images'].shape[-1]).to(
            self.device, memory_format=torch.channels_last)
        self.optimizer = PaperSGD(self.network, recipe['momentum'], recipe['weight_decay'],
                                  self.device)
        self.wrong = torch.zeros((), device=self.device)  # training errors of the warm-up's window
        self.mean, self.std = (torch.from_numpy(data[name]).to(self.device)
                               for name in ('mean', 'std'))
        self.test_images = self.normalized(data['test_images'])
        self.test_labels = torch.from_numpy(data['test_labels']).long().to(self.device)
        self.data = data

    def normalized(self, images: np.ndarray) -> torch.Tensor:
        """uint8 [N, H, W, C] -> float32 [N, C, H, W] on the device."""
        parts = [((torch.from_numpy(images[i:i + 1000]).to(self.device) / 255 - self.mean)
                  / self.std).permute(0, 3, 1, 2) for i in range(0, len(images), 1000)]
        return torch.cat(parts)

    def autocast(self):
        return torch.autocast(self.device, torch.bfloat16,
                              enabled=self.fair and self.device == 'cuda')

    def update(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        images = images.contiguous(memory_format=torch.channels_last)
        with self.autocast():
            scores = self.network(images)
            loss = functional.cross_entropy(scores, labels)
        for parameter in self.network.parameters():
            parameter.grad = None
        loss.backward()
        self.optimizer.step()
        self.wrong += (scores.argmax(1) != labels).sum()

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Every test image, once, as it is."""
        self.network.eval()
        loss, wrong, size = 0.0, 0, self.recipe['eval_batch_size']
        for images, labels in zip(self.test_images.split(size), self.test_labels.split(size),
                                  strict=True):
            with self.autocast():
                scores = self.network(images.contiguous(memory_format=torch.channels_last)).float()
            loss += functional.cross_entropy(scores, labels, reduction='sum')
            wrong += (scores.argmax(1) != labels).sum()
        self.network.train()
        count = len(self.test_labels)
        return {'eval/loss': float(loss) / count, 'eval/top1_error': 100 * float(wrong) / count,
                'eval/count': count}

    def state(self) -> dict:
        return {'network': self.network.state_dict(), 'velocity': self.optimizer.velocity,
                'wrong': self.wrong}

    def load(self, state: dict) -> None:
        self.network.load_state_dict(state['network'])
        for own, stored in zip(self.optimizer.velocity, state['velocity'], strict=True):
            own.copy_(stored)
        self.wrong.copy_(state['wrong'])


def plain_steps(trainer: Trainer, start: int, workers: int):
    """Endless training steps, fed by a DataLoader."""
    data, recipe = trainer.data, trainer.recipe
    images = Images(data['train_images'], data['train_labels'].astype(np.int64), data['mean'],
                    data['std'], recipe)
    loader = torch.utils.data.DataLoader(
        images, recipe['batch_size'], num_workers=workers, pin_memory=trainer.device == 'cuda',
        sampler=EndlessOrder(len(images), recipe['seed'], start * recipe['batch_size']))
    for batch, labels in loader:
        trainer.update(batch.to(trainer.device, non_blocking=True),
                       labels.to(trainer.device, non_blocking=True))
        yield


def fair_steps(trainer: Trainer, start: int):
    """Endless training steps from images on the device; on CUDA, one graph is replayed."""
    data, recipe, device = trainer.data, trainer.recipe, trainer.device
    pad, size = recipe['crop_padding'], data['train_images'].shape[1]
    padded = functional.pad(trainer.normalized(data['train_images']), (pad,) * 4)
    labels = torch.from_numpy(data['train_labels']).long().to(device)
    index = torch.zeros(recipe['batch_size'], dtype=torch.long, device=device)
    pixels = torch.arange(size, device=device)

    def step():
        top, left = torch.randint(2 * pad + 1, (2, len(index)), device=device)
        columns = left[:, None] + pixels
        if recipe['flip']:
            flipped = torch.rand(len(index), 1, device=device) < 0.5
            columns = torch.where(flipped, columns.flip(1), columns)
        rows = top[:, None] + pixels
        # [N, H, W, C]: the indexed dimensions come first.
        crops = padded[index[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        trainer.update(crops.permute(0, 3, 1, 2), labels[index])

    replay = step if device == 'cpu' else _captured(trainer, step)
    epoch, offset = divmod(start * recipe['batch_size'], len(labels))
    order = permutation(len(labels), recipe['seed'], epoch).to(device)[offset:]
    while True:
        while len(order) < len(index):
            epoch += 1
            order = torch.cat([order, permutation(len(labels), recipe['seed'], epoch).to(device)])
        index.copy_(order[:len(index)])
        order = order[len(index):]
        replay()
        yield


def _captured(trainer: Trainer, step):
    """The step as a CUDA graph, leaving the state as it was."""
    kept = {name: [x.clone() for x in part] if isinstance(part, list) else
            {k: v.clone() for k, v in part.items()} if isinstance(part, dict) else part.clone()
            for name, part in trainer.state().items()}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUP_STEPS):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    trainer.load(kept)
    return graph.replay


def train(trainer: Trainer, workdir: pathlib.Path, workers: int) -> int:
    """Until the last step or a signal; the exit status."""
    recipe, schedule = trainer.recipe, Schedule(trainer.recipe)
    path, step, asked = workdir / 'state.pt', 0, []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    if path.exists():
        stored = torch.load(path, map_location=trainer.device, weights_only=True)
        if stored['recipe'] != {**recipe, 'num_steps': stored['recipe']['num_steps']}:
            sys.exit(f'error: {workdir} holds a run of another recipe; choose another --workdir.')
        step, schedule.warm = stored['step'], stored['warm']
        trainer.load(stored['state'])
    torch.manual_seed(recipe['seed'] + step)
    steps = fair_steps(trainer, step) if trainer.fair else plain_steps(trainer, step, workers)
    begin, first = time.perf_counter(), step
    while step < recipe['num_steps'] and not asked:
        trainer.optimizer.rate.fill_(schedule.rate(step))
        next(steps)
        step += 1
        schedule.after(step, trainer)
        if step % recipe['eval_every_steps'] == 0 or step == recipe['num_steps']:
            values = trainer.evaluate()
            if not math.isfinite(values['eval/loss']):
                sys.exit(f'error: the loss was not finite at step {step}.')
            with (workdir / 'metrics.jsonl').open('a') as file:
                file.write(json.dumps({'step': step, **values}) + '\n')
            rate = (step - first) * recipe['batch_size'] / (time.perf_counter() - begin)
            print(f'step {step}: test error {values["eval/top1_error"]:.2f} %  '
                  f'{rate:,.0f} images/s', flush=True)
    part = path.with_suffix('.part')
    torch.save({'recipe': recipe, 'step': step, 'warm': schedule.warm, 'state': trainer.state()},
               part)
    part.replace(path)
    return 128 + asked[0] if step < recipe['num_steps'] else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--recipe', type=pathlib.Path, required=True, help='JSON; see cifar.py.')
    parser.add_argument('--data', required=True, help='Images; see cifar.py.')
    parser.add_argument('--workdir', type=pathlib.Path, required=True)
    parser.add_argument('--fair', action='store_true', help='Data on the device, bfloat16, graph.')
    parser.add_argument('--workers', type=int, default=4, help='Of the DataLoader.')
    arguments = parser.parse_args()
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    with np.load(arguments.data) as data:
        trainer = Trainer(json.loads(arguments.recipe.read_text()), dict(data), arguments.fair)
    return train(trainer, arguments.workdir, arguments.workers)


if __name__ == '__main__':
    sys.exit(main())
