r"""A training of ours in PyTorch: its mIoU and its seconds a step, beside those of our run.

    pip install -r requirements-bench.txt
    OMP_NUM_THREADS=1 taskset -c 0 python -m benchmarks.torch_training \
        --config configs/folder.py:NAME,55,cutmix,steps=240 --out torch.json --ours runs/NAME_cutmix

It takes a configuration as `css_jax.main` does, and from us what comes before a step: the labelled
images, the first weights, the batches of uint8 crops. The rest is PyTorch in eager mode: the views,
with its own random numbers (torch_views.py), the network (torch_network.py), pseudo-labels, loss,
SGD and EMA (torch_step.py). Teacher and student are scored by PyTorch's predictions for the whole
images of the evaluated split; the counting of pixels is ours (css_jax.ops.metrics).

A step is timed from its crops to the teacher's update. Crops are made between the steps, in no
thread beside them, and are timed as 'data'. Our run makes its crops while it trains, so that its
seconds, which are those of its record, compare with both together.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor

from benchmarks import machine, torch_network, torch_step, torch_views
from css_jax import config as configs
from css_jax import methods, state
from css_jax.config import command_line
from css_jax.data import evaluation, sources, streams
from css_jax.evaluation import results
from css_jax.keys import at
from css_jax.ops import metrics
from css_jax.run import files, folder
from css_jax.run import metrics as run_metrics
from css_jax.weights import initial

# Key -> its values that are written here.
KNOWN: dict[str, tuple] = {
    'method': ('supervised', 'mean_teacher', 'cutmix'),
    'init_from': ('',),
    'accumulate_steps': (1,),
    'slips': (False,),
    'model.family': ('deeplab',),
    'model.backbone': tuple(torch_network.STRIDED),
    'model.output_stride': (8, 16),
    'model.head_convs': (1,),
    'model.low_level_bias': (False,),
    'model.dtype': ('float32',),
    'supervised.loss': ('ce',),
    'unsupervised.loss': ('thresholded',),
    'augment.mixing': ('none', 'cutmix'),
    'teacher.batch_norm': ('own',),
    'eval.network': ('teacher',),
    'eval.protocol': ('whole',),
    'eval.flip': (False,),
    'eval.scales': ((1.0,),),
}
NETWORKS = ('teacher', 'student')
STUDENT = 'results_network=student.json'  # of `--mode evaluate --config.eval.network=student`


def check(config: ConfigDict) -> None:
    """Refuse what is not written here.

    Raises:
        ValueError: names the key, what came and what was expected.
    """
    own = configs.keys(config.method)
    for key, values in KNOWN.items():
        if key in own and (got := at(config, key)) not in values:
            raise ValueError(f'{key}: got {got!r}, expected {" or ".join(map(repr, values))}')


@torch.no_grad()
def scores(training: torch_step.Training, config: ConfigDict) -> dict[str, float]:
    """Return the mIoU of teacher and student on the evaluated split, whole images padded."""
    c, matrices = config.eval, dict.fromkeys(NETWORKS, 0)
    source = sources.load(c.dataset, c.split, config.data.dir)
    groups = evaluation.groups(source, c.protocol, pad_to=tuple(c.pad_to))
    for batch in evaluation.eval_batches(source, groups, batch_size=c.batch_size):
        images = torch_views.normalise(torch_step.levels(batch['image']), config.data)
        labels = np.where(batch['label'] == 255, -1, batch['label'].astype(np.int32))
        for name in NETWORKS:
            out = torch_step.logits(getattr(training, name), images, config, train=False)
            predicted = torch_step.resized(out, images).argmax(1).int().numpy()
            found = metrics.confusion(labels, predicted, config.num_classes)
            matrices[name] = matrices[name] + np.asarray(found, np.int64)
    return {name: metrics.scores(matrix)['miou'] for name, matrix in matrices.items()}


def train(config: ConfigDict) -> dict[str, Any]:
    """Train one run and score it.

    Args:
        config: finalised, see `check`.

    Returns:
        'seconds' and 'seconds of data': medians over the steps of each phase, 'supervised' or the
        method's name; 'loss' of the last step; 'miou' of each network.
    """
    torch.manual_seed(config.seed)
    method, ctx = methods.METHODS[config.method], methods.context(config)
    optimizer, _ = method.optimizer(config)
    training = torch_step.start(
        config, state.create(method, optimizer, ctx, initial.load(config, method, ctx))
    )
    data = ConfigDict(config.data.to_dict())
    data.threads = 0  # those that read ahead would take the steps' core
    sizes = {name: stream.batch_size for name, stream in config.data.streams.items()}

    def draw(stream: str, purpose: str, count: int) -> Tensor:
        del purpose  # PyTorch's generator gives other numbers at every call
        return torch.rand(sizes[stream], count)

    found: dict[str, Any] = {'seconds': {}, 'seconds of data': {}}
    for name, begin, until, read in phases(config):
        batches = streams.train_batches(data, config.seed, begin, names=read)
        times = []
        for t in range(begin, until):
            began = time.perf_counter()
            batch = next(batches)
            ready = time.perf_counter()
            found['loss'] = torch_step.step(training, t, batch, draw, config)
            times.append((time.perf_counter() - ready, ready - began))
            if (t + 1) % 10 == 0:
                seconds = ' + '.join(f'{x:.2f}' for x in times[-1])
                print(f'step {t + 1}/{config.steps}  loss {found["loss"]:.3f}  {seconds} s',
                      file=sys.stderr, flush=True)  # fmt: skip
        medians = map(statistics.median, zip(*times, strict=True))
        found['seconds'][name], found['seconds of data'][name] = medians
    return {**found, 'miou': scores(training, config)}


def phases(config: ConfigDict) -> list[tuple[str, int, int, list[str]]]:
    """Return (name, first step, step after the last, streams) of what a run does in turn."""
    found, begin = [], 0
    for until, phase in methods.phases(config):
        name = config.method if phase is methods.METHODS[config.method] else 'supervised'
        if until > begin:
            found.append((name, begin, until, list(phase.streams)))
        begin = until
    return found


def ours(run: pathlib.Path, config: ConfigDict) -> dict[str, Any]:
    """Return the numbers of our run, see `train`; a step's seconds are with its data.

    Args:
        run: its folder; without the file STUDENT there is no mIoU of the student.
        config: finalised.

    Raises:
        ValueError: the run was trained with another configuration.
        FileNotFoundError: there is no such run, or it has no results.
    """
    folder.match(config, run)
    records = [r for r in run_metrics.read(run) if 'images_per_second' in r]
    steps, seconds = [0, *(r['step'] for r in records)], {}
    for name, begin, until, read in phases(config):
        images = sum(config.data.streams[stream].batch_size for stream in read)
        times = [
            images / record['images_per_second']
            for before, record in zip(steps, records, strict=False)
            if begin <= before and record['step'] <= until
        ]
        seconds[name] = statistics.median(times) if times else None
    miou, student = {'teacher': results.read(run / results.RESULTS)['miou']}, run / STUDENT
    if student.exists():
        miou['student'] = results.read(student)['miou']
    return {'seconds with data': seconds, 'loss': records[-1]['loss'], 'miou': miou}


def read(arguments: Sequence[str]) -> tuple[ConfigDict, argparse.Namespace]:
    """Return what a command line asks for: the finalised configuration and the other flags.

    Raises:
        ValueError: of the configuration, see `check` and `css_jax.config`; there is no folder
            for the file.
        FileNotFoundError: its file or its dataset is not there.
    """
    others, changes = command_line.split(list(arguments))
    parser = argparse.ArgumentParser(prog='python -m benchmarks.torch_training')
    parser.add_argument('--config', required=True, help='FILE:ARG, as of css_jax.main')
    parser.add_argument('--out', type=pathlib.Path, required=True, help='file of JSON to write')
    parser.add_argument('--ours', type=pathlib.Path, help='folder of our run of --config')
    parser.add_argument('--threads', type=int, default=1)
    flags = parser.parse_args(others)
    if not flags.out.parent.is_dir():
        raise ValueError(f'--out={flags.out}: there is no folder {flags.out.parent}')
    config = command_line.load(flags.config, changes)
    config.update_from_flattened_dict(command_line.values(config, changes))
    config = configs.finalise(config)
    check(config)
    return config, flags


def main(arguments: Sequence[str]) -> None:
    """Train what a command line asks for; print the numbers and write them to a file."""
    try:
        config, flags = read(arguments)
        beside = {'ours': ours(flags.ours, config)} if flags.ours else {}
    except (ValueError, OSError) as error:
        sys.exit(f'error: {error}')
    jax.config.update('jax_platforms', 'cpu')
    torch.set_num_threads(flags.threads)
    told = {key: config[key] for key in ('method', 'seed', 'steps')}
    told |= {'torch': torch.__version__, 'threads': flags.threads, **machine.moment()}
    text = json.dumps({**told, 'theirs': train(config), **beside}, indent=2)
    files.write(flags.out, text + '\n')
    print(text)


if __name__ == '__main__':
    main(sys.argv[1:])
