"""The benchmark of the dense energy: on small images, and the shares of a small step."""

import jax
import pytest

from benchmarks import count, energy
from configs import cosa
from css_jax import config as configs

pytestmark = pytest.mark.soak


def test_the_filter_is_a_product_of_all_pairs_of_pixels():
    images, side = 2, 8
    given = energy.drawn(images, 32)
    kernels = count.kernels(jax.make_jaxpr(energy.gradient(side))(*given))
    pairs = 2 * images * side**4 * energy.CLASSES
    assert [(k.kind, k.type) for k in kernels if k.flops == pairs] == [('product', 'float32')]


def test_the_sides_are_run_in_turns():
    rows = list(energy.energies(2, 32, (4, 8), 2))
    assert [row['side'] for row in rows] == [4, 8]
    assert all(row['ms'] > 0 for row in rows)


def test_a_step_has_views_and_an_energy_after_classification_alone():
    config = configs.finalise(cosa.get_config('quickstart'))
    alone, full = energy.phases(config)
    assert alone['views %'] == alone['energy %'] == alone['energy % of GB'] == 0
    assert full['GFLOP'] > alone['GFLOP'] and full['memory MiB'] is None
    for unit in ('%', '% of GB'):
        assert 0 < full[f'energy {unit}'] < 100 - full[f'views {unit}'] < 100


@pytest.mark.parametrize('dtype', energy.TYPES)
def test_the_published_step(dtype):
    config = energy.configuration('vit_base', dtype)
    stream = config.data.streams.images
    assert (config.method, config.num_classes) == ('cosa', energy.CLASSES)
    assert (stream.batch_size, *stream.crop) == (energy.IMAGES, energy.CROP, energy.CROP)
    assert config.model.dtype == dtype
