"""All tests, and the processes they start, share one cache of compiled programs."""

import importlib.metadata
import os
import pathlib
import signal

import pytest

ROOT = pathlib.Path(__file__).parents[1]
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(ROOT / '.cache' / 'jax'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.2')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # the cache's notes on machine features
# Compiling is most of what the tests take; unoptimised programs compute the same.
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_backend_optimization_level=0'
if importlib.metadata.version('jax').startswith('0.10.'):  # halves it once more; gone in 0.11
    os.environ['XLA_FLAGS'] += ' --xla_cpu_use_fusion_emitters=false'
os.environ['JAX_NUM_CPU_DEVICES'] = '2'  # for the tests of the device axis
os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # also where there is a GPU: it may be but one
# In the background of a script Ctrl-C comes ignored, and the tests of it would wait in vain.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory):
    """A folder with a `shapes` of 24, 10 and 8 images."""
    from data_prep import records
    from data_prep.shapes.builder import Builder

    folder = tmp_path_factory.mktemp('prepared')
    records.prepare(Builder(data_dir=folder, splits={'train': 24, 'val': 10, 'fresh': 8}))
    return str(folder)
