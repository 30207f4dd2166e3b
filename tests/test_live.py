"""On a trained quickstart every threshold passes some pixels, in each row of Tables 5, 6 and 7."""

import json
import os
import subprocess
import sys

import jax
import pytest

from configs import quickstart
from css_jax import config as configs
from css_jax import methods, parallel, state
from css_jax import step as steps
from css_jax.data import streams
from css_jax.evaluation import results
from css_jax.run import checkpoint
from css_jax.run import folder as run_folder
from tests.conftest import ROOT

pytestmark = pytest.mark.soak

ROWS = [  # of pseudo-label and indicator
    ('logit', 'confidence'),
    ('logit', 'similarity'),
    ('logit', 'both'),
    ('representation', 'both'),
    ('mix', 'confidence'),
    ('mix', 'similarity'),
    ('mix', 'both'),
    ('cross', 'confidence'),
    ('cross', 'both'),
]
REFERENCE = {
    'method': 'css_cross',
    'follow': 'reference',
    'unsupervised.loss': 'weighted',
    'unsupervised.threshold': 0.97,
    'unsupervised.warmup_passes': 0,
    'burn_in_steps': 0,
}


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A quickstart of a fifth of its steps, and the images it goes on with."""
    workdir, data_dir = tmp_path_factory.mktemp('live'), tmp_path_factory.mktemp('data')
    changes = {'steps': 180, 'burn_in_steps': 60, 'data.dir': data_dir}
    command = [sys.executable, '-m', 'css_jax.main', f'--config={ROOT}/configs/quickstart.py']
    command += [f'--workdir={workdir}', *(f'--config.{k}={v}' for k, v in changes.items())]
    # A process of its own, with optimised programs: training is most of what this takes.
    env = os.environ | {'XLA_FLAGS': '', 'JAX_NUM_CPU_DEVICES': '1'}
    subprocess.run(command, cwd=ROOT, env=env, check=True)
    config = run_folder.load(workdir)
    miou = json.loads((workdir / results.RESULTS).read_text())['miou']
    batch = next(streams.train_batches(configs.finalise(config).data, seed=7))
    return config, workdir, miou, batch


@pytest.fixture(scope='module')
def shares(trained):
    """What one step more would log, by row; one program, so that the rows share their networks."""
    of_run, workdir, _, batch = trained
    rows = {row: {'pseudo_label': row[0], 'indicator': row[1]} for row in ROWS}
    rows['reference'] = REFERENCE
    found = {}
    for row, changes in rows.items():
        config = quickstart.get_config('css')
        config.data.dir = of_run.data.dir
        config.update_from_flattened_dict(changes)
        config = configs.finalise(config)
        ctx = methods.context(config, images={'labelled': 8, 'unlabelled': 492})
        found[row] = methods.METHODS[config.method], ctx
    method, ctx = found[ROWS[0]]
    checkpoints = checkpoint.Checkpoints(workdir, read_only=True)
    current = checkpoints.restore(state.create(method, method.optimizer(ctx.config)[0], ctx))
    checkpoints.close()

    def measure(current, batch):
        keys = parallel.step_keys(current.key, current.step, batch, None)
        metrics = {}
        for row, (method, ctx) in found.items():
            prepared, _ = method.targets(current, batch, keys, ctx)
            _, (_, _, found_metrics) = steps.objective(
                current.student.params, current, prepared, keys, method=method, ctx=ctx
            )
            metrics['/'.join(row) if isinstance(row, tuple) else row] = found_metrics
        return metrics

    return jax.device_get(jax.jit(measure)(current, batch))


def test_it_is_trained(trained):
    assert trained[2] > 0.5


@pytest.mark.parametrize('row', ROWS)
def test_every_thresholded_term_is_alive(shares, row):
    found = shares['/'.join(row)]
    for name in ('confident', 'confident_foreground', 'valid', 'hard', 'anchors'):
        assert found[name] > 0, name
    assert found['loss_unsupervised'] > 0 and found['loss_contrastive'] > 0
    assert found['classes_present'] == 7


def test_the_reference_s_cross_is_not(shares):
    """Its L_u thresholds j_rep at a temperature at which no pixel can pass."""
    found = shares['reference']
    assert found['confident'] == 0 and found['loss_unsupervised'] == 0
    assert found['valid'] > 0
