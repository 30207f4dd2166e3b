"""The quickstart's first losses: what moves code must not move numbers."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np

from tests.conftest import ROOT

GOLDEN = json.loads((pathlib.Path(__file__).parent / 'fixtures' / 'golden.json').read_text())


def test_the_quickstart_s_losses_stay(tmp_path):
    """On one device, and the same on Python 3.11 and 3.12: the dataset and all draws are seeded."""
    command = [sys.executable, '-m', 'tests.golden', str(tmp_path)]
    env = os.environ | {'JAX_NUM_CPU_DEVICES': '1'}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == GOLDEN.keys()
    for method, steps in GOLDEN.items():
        for step, losses in steps.items():
            assert found[method][step].keys() == losses.keys()
            for name, loss in losses.items():
                where = f'{method}, step {step}: {name}'
                np.testing.assert_allclose(found[method][step][name], loss, 1e-5, err_msg=where)
