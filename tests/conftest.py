"""All tests, and the processes they start, share one cache of compiled programs, and no network."""

import gc
import importlib.metadata
import os
import pathlib
import signal

import pytest
from hypothesis import HealthCheck, configuration, settings

from tests.offline import sitecustomize

ROOT = pathlib.Path(__file__).parents[1]
OFFLINE = pathlib.Path(sitecustomize.__file__).parent
os.environ['PYTHONPATH'] = os.pathsep.join(
    [str(OFFLINE), *filter(None, [os.environ.get('PYTHONPATH')])]
)
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(ROOT / '.cache' / 'jax'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.2')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # the cache's notes on machine features
os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # also where there is a GPU: it may be but one
if os.environ['JAX_PLATFORMS'] == 'cpu':
    # Compiling is most of what the tests take; unoptimised programs compute the same.
    flags = '--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1'
    if importlib.metadata.version('jax').startswith('0.10.'):  # halves it again; gone in 0.11
        flags += ' --xla_cpu_use_fusion_emitters=false'
    os.environ.setdefault('XLA_FLAGS', flags)
os.environ.setdefault('JAX_NUM_CPU_DEVICES', '2')  # for the tests of the device axis
# What a test makes is garbage at its end; to look for it while jax traces is a fifth of tracing.
gc.set_threshold(50_000, 20, 20)
# In the background of a script Ctrl-C comes ignored, and the tests of it would wait in vain.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Properties are tested on drawn inputs: by a fixed seed in `make test`, by others in `make soak`.
configuration.set_hypothesis_home_dir(ROOT / '.cache' / 'hypothesis')
# No limit of time: what takes long is a compilation, or another program on the machine.
ALWAYS = settings(deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile('test', ALWAYS, derandomize=True, max_examples=12)
settings.register_profile('soak', ALWAYS, max_examples=1000, print_blob=True)
settings.load_profile('test')


# Whole files go to the workers, these before all others: a long one must not be the last.
FIRST = (
    'test_processes',
    'test_spread',
    'test_house',
    'test_usss',
    'test_imas',
    'test_unimatch',
    'test_cosa',
    'test_cosa_runs',
    'test_cosa_views',
    'test_train',
    'test_flags',
    'test_sweep',
    'test_atrous',
    'test_remat',
    'test_pretrained',
)


def pytest_collection_modifyitems(items):
    """Begins with the longest files; a sort is stable."""
    order = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope='module')
def shallow():
    """Makes `resnet18` one block a layer; tests/models has the names of all of its arrays."""
    from css_jax import models
    from tests import small

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.BACKBONES, 'resnet18', small.shallow)
        yield


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory):
    """A folder with a `shapes` of 24, 10 and 8 images."""
    from data_prep import records
    from data_prep.shapes.builder import Builder

    folder = tmp_path_factory.mktemp('prepared')
    records.prepare(Builder(data_dir=folder, splits={'train': 24, 'val': 10, 'fresh': 8}))
    return str(folder)
