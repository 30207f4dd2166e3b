"""The real benchmarks: their programs lowered for a GPU, and each part run once at a small size."""

import functools
import io
import json
import os
import subprocess

import jax
import numpy as np
import pytest
from PIL import Image

from benchmarks import contrastive, data, evaluation, intensity, roofline, run, step
from css_jax.models import atrous

pytestmark = pytest.mark.soak


def cases(plan):
    """The cases of `benchmarks.step` in a plan."""
    commands = [command.split() for _, command, _ in plan]
    steps = [words for words in commands if words[0] == 'step' and '--size' not in words]
    return [case for words in steps for case in words[words.index('--cases') + 1].split(',')]


def programs():
    """Name -> function that gives what an accelerator compiles: (jitted function, shapes)."""

    def of_step(size, case):
        made = step.Run(*step.settings(size, case))
        return made.jitted, made.shapes

    def of_contrastive(estimator):
        return contrastive.program(estimator), jax.eval_shape(lambda: contrastive.arrays('real'))

    found = {}
    sized = [('real', case) for case in cases(run.FIRST)]
    sized += [('small', case) for case in [step.HEADLINE, *cases(run.MORE)]]
    for size, case in sized:
        found[f'{size} step, {case}'] = functools.partial(of_step, size, case)
    for name in ('bank', 'sampled'):
        found[f'L_c, {name}'] = functools.partial(of_contrastive, name)
    for name in evaluation.CASES['real']:
        found[f'evaluation, {name}'] = functools.partial(evaluation.program, 'real', name)
    view = intensity.shapes(intensity.BATCH, intensity.SIDE)
    for name, form in intensity.FORMS.items():
        found[f'strong view, {name}'] = functools.partial(tuple, (jax.jit(form), view))
    for name, program in roofline.programs('real').items():
        found[f'peak, {name}'] = functools.partial(tuple, program)
    return found


@pytest.mark.parametrize('name', programs())
def test_what_an_accelerator_compiles_lowers_for_cuda(name, monkeypatch):
    monkeypatch.setitem(atrous.AUTO, 'cpu', atrous.AUTO['gpu'])
    function, shapes = programs()[name]()
    lowered = function.trace(*shapes).lower(lowering_platforms=('cuda',))
    assert 'func.func public @main' in lowered.as_text()


def measured(folder, command):
    """Runs a part at a small size: its rows by caption."""
    lines = folder / 'lines'
    words = command.split() if '--size' in command else [*command.split(), '--size', 'small']
    # Programs that nothing made slow to compile sooner, and no fake devices.
    environment = {k: v for k, v in os.environ.items() if k not in ('XLA_FLAGS',)}
    environment |= {'JAX_NUM_CPU_DEVICES': '1', 'TMPDIR': str(folder)}
    subprocess.run(
        [*run.command(words[0]), *words[1:], '--lines', str(lines)],
        cwd=run.ROOT,
        env=environment,
        check=True,
    )
    found = {}
    for record in map(json.loads, lines.read_text().splitlines()):
        found.setdefault(record['caption'], []).append(record['row'])
    return found


def test_a_step_is_measured_then_traced_and_its_forms_are_two(tmp_path):
    found = measured(tmp_path, 'step --cases bfloat16,dilated,remat_all')
    rows = {row['step']: row for row in found[step.CAPTION['small']]}
    assert list(rows) == ['bfloat16', 'dilated', 'remat_all']
    memory = {row['step']: row['temporary MiB'] for row in found['Compilation of the step']}
    assert memory['remat_all'] < 0.8 * memory['bfloat16']
    assert rows['remat_all']['TFLOP'] > 1.2 * rows['bfloat16']['TFLOP']
    for row in rows.values():
        assert row['ms'] * row['pairs/s'] == pytest.approx(8000)
        assert row['ms'] * row['TFLOP/s'] == pytest.approx(1000 * row['TFLOP'])
    (kernels,) = (rows for caption, rows in found.items() if caption.startswith('Kernels'))
    named = [row for row in kernels if not row['kernels'].startswith('all: ')]
    total, covered, *named, _ = named
    assert sum(row['ms a step'] for row in named) >= 0.95 * total['ms a step']
    assert 0 < covered['share'] <= 1
    assert sum(row['share'] for row in kernels if row['kernels'].startswith('all: ')) == (
        pytest.approx(total['share'])
    )


def test_the_parts_of_a_step_have_all_its_arithmetic(tmp_path):
    for rows in measured(tmp_path, 'parts').values():
        found = {row['part']: row for row in rows}
        whole, parts = found['the whole step'], found['sum of the parts']
        assert parts['GFLOP'] == pytest.approx(whole['GFLOP'], rel=0.01)


@pytest.mark.parametrize(
    ('command', 'first'),
    [
        ('contrastive', ['bank', 'sampled']),
        ('convolutions', ['dilated', 'dilated', 'space_to_batch', 'space_to_batch']),
        ('data', [len(os.sched_getaffinity(0))]),
        ('evaluation', ['whole', 'sliding', 'whole, flip']),
        ('startup', ['cold', 'warm']),
        ('checkpoint', [1]),
    ],
)
def test_every_other_part_gives_its_rows(command, first, tmp_path):
    (rows,) = measured(tmp_path, command).values()
    found = [next(iter(row.values())) for row in rows]
    assert found[: len(first)] == first


def test_drawn_images_are_as_large_as_vocs():
    drawn = [data.draw(np.random.default_rng(seed)) for seed in range(6)]
    for encoded, label in drawn:
        image = Image.open(io.BytesIO(encoded))
        assert image.format == 'JPEG' and image.size == label.shape[::-1]
        assert sorted(label.shape) == [375, 500]
        assert 0 in label and set(np.unique(label)) <= {*range(21), 255}
    # VOC 2012's archive has 17,125 images in 2 GB.
    assert 85e3 < np.mean([len(encoded) for encoded, _ in drawn]) < 110e3


def test_every_part_of_the_plan_is_a_module():
    for _, command, _ in (*run.FIRST, *run.MORE):
        assert (run.ROOT / 'benchmarks' / f'{command.split()[0]}.py').exists()
    assert set(cases(run.FIRST) + cases(run.MORE)) == set(step.CASES)


def test_the_papers_settings():
    voc, city = (step.settings('real', case)[0] for case in (step.HEADLINE, 'cityscapes'))
    for config, stem, classes, side, batch in (
        (voc, 'conv7', 21, 512, 16),
        (city, 'deep', 19, 768, 8),
    ):
        assert config.model.backbone == 'resnet101' and config.model.output_stride == 8
        assert (config.model.stem, config.num_classes) == (stem, classes)
        assert config.teacher.labelled_pass and config.model.dtype == 'bfloat16'
        for stream in config.data.streams.values():
            assert (tuple(stream.crop), stream.batch_size) == ((side, side), batch)
