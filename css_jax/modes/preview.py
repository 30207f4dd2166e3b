"""--mode preview: a batch as the network sees it, and what a step costs, without training."""

import contextlib
import logging
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import jax
from clu import parameter_overview
from ml_collections import ConfigDict

from css_jax import config as configs
from css_jax import methods, parallel, state
from css_jax.config import defaults
from css_jax.data import splits, streams
from css_jax.evaluation import pictures, targets
from css_jax.keys import at
from css_jax.parallel import cost
from css_jax.prepare import check, phases_of
from css_jax.run import checkpoint
from css_jax.run import folder as run_folder
from css_jax.weights import initial, named

LOG = logging.getLogger('css_jax')
PICTURE = 'preview.png'
TEXT = 'preview.txt'


def preview(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    file: str = 'given',
    flags: Collection[str] = (),
) -> None:
    """Write DIR/preview.png and DIR/preview.txt; trains nothing.

    The picture shows a batch as the network sees it: labelled image and mask, weak view, strong
    view with pseudo-label and indicator. The text has every value of the configuration in effect
    and where it is from, the parameter table, and the arithmetic and memory of one compiled step. A
    run that is in DIR already is shown at its latest checkpoint, with its configuration untouched;
    otherwise the weights are those that it would start with: of `model.pretrained` or `init_from`
    if given, else random. Where they have yet to be downloaded, random ones stand for them.

    Args:
        config: see `css_jax.config`.
        workdir: a run's folder, or one to be made.
        file: what is said of values that the configuration came with.
        flags: keys that a flag has set.

    Raises:
        ValueError: the configuration is impossible, or not that of the run in DIR; what it starts
            from does not fit.
        FileNotFoundError: what it starts from is not there.
    """
    origins = configs.origins(config, workdir)
    config = configs.finalise(config, workdir)
    method = methods.METHODS[config.method]
    batches = streams.train_batches(config.data, seed=config.seed)
    tx, _ = method.optimizer(config)
    images = {name: len(ids) for name, ids in splits.subsets(config.data).items()}
    ctx = methods.context(config, images=images)
    layout = parallel.Layout(config.parallel)
    spread = methods.context(config, parallel.AXIS, images)
    phases = phases_of(config, layout, tx, spread)
    for name, stream in config.data.streams.items():
        key = f'data.streams.{name}.batch_size'
        layout.shares(key, stream.batch_size, config.accumulate_steps)
    make = state.maker(method, tx, ctx, layout.replicated)
    check(config, layout, make, phases)
    workdir = pathlib.Path(workdir)
    if checkpoint.exists(workdir):
        run_folder.match(config, workdir)
        current = state.create(method, tx, ctx)
        with contextlib.closing(checkpoint.Checkpoints(workdir, read_only=True)) as checkpoints:
            current = checkpoints.restore(current)
    else:
        if named.absent(config.model.pretrained):
            LOG.info('model.pretrained=%s is downloaded when training begins: what is shown has '
                     'random weights', config.model.pretrained)  # fmt: skip
            given = {}
        else:
            given = initial.load(config, method, ctx)
        current = state.create(method, tx, ctx, given)
    batch = next(batches)

    def view(current: state.TrainState, batch: dict) -> dict:
        keys = parallel.step_keys(current.key, current.step, batch, ctx.axis)
        return method.targets(current, batch, keys, ctx)[0]

    workdir.mkdir(parents=True, exist_ok=True)
    prepared = jax.device_get(parallel.compile(view)(current, batch))
    _picture(workdir / PICTURE, config, batch, prepared)

    program = phases[-1].program.lower(layout.replicas(current), layout.place(batch)).compile()
    text = '\n'.join(
        [
            f'Preview of {config.method} at step {int(current.step)}',
            '',
            'Configuration in effect, and where each value is from:',
            *_origin_lines(config, origins, file, flags),
            '',
            parameter_overview.get_parameter_overview(current.student.params),
            '',
            f'One training step, on each of {len(layout.devices)} devices:',
            *_cost_lines(cost.cost(program)),
            *_crossing_lines(program if len(layout.devices) > 1 else None),
        ]
    )
    (workdir / TEXT).write_text(text + '\n')
    print(text)
    print(f'written: {workdir / PICTURE}, {workdir / TEXT}')


def _origin_lines(
    config: ConfigDict, origins: Mapping[str, str], file: str, flags: Collection[str]
) -> list[str]:
    lines = []
    for path, origin in sorted(origins.items()):
        if origin == defaults.SET:
            origin = f'--config.{path}' if path in flags else file
        lines.append(f'  {path} = {at(config, path)!r}  ({origin})')
    return lines


def _picture(path: pathlib.Path, config: ConfigDict, batch: Mapping, prepared: Any) -> None:
    """Show what of these the method has; streams may differ in crop and batch size."""
    columns = targets.read(config, batch) | targets.made(config, batch, prepared)
    rows = min(4, *(len(images) for images in columns.values()))
    pictures.write_grid(path, {title: images[:rows] for title, images in columns.items()})


def _crossing_lines(program: jax.stages.Compiled | None) -> list[str]:
    """Say what a program of several devices exchanges; docs/scaling.md has it by array."""
    crossing = cost.crossing(program.as_text()) if program else {}
    return [f'  {name} {size / 2**20:.3f} MiB' for name, size in sorted(crossing.items())]


def _cost_lines(values: Mapping[str, float | None]) -> list[str]:
    def amount(value: float | None, unit: float, name: str) -> str:
        return 'not told by this backend' if value is None else f'{value / unit:.3f} {name}'

    return [
        f'  arithmetic  {amount(values["flops"], 1e9, "GFLOP")}',
        f'  temporaries {amount(values["bytes_temporary"], 2**30, "GiB")}',
        f'  arguments   {amount(values["bytes_arguments"], 2**30, "GiB")}',
        f"  results     {amount(values['bytes_output'], 2**30, 'GiB')} (in the arguments' place)",
    ]
