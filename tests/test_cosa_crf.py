"""The CRF behind CoSA's segmentation: an option of its evaluation, of a package of its own."""

import importlib.util

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import cosa as file
from css_jax import config as configs
from css_jax.methods import cosa_cams, cosa_crf, cosa_scores
from css_jax.methods.method import Seen
from css_jax.state import Context


def test_borders_move_to_those_of_colours():
    """The right half is bright, and of class 1; the probabilities say so a pixel too late."""
    pytest.importorskip(cosa_crf.PACKAGE)
    rng = np.random.default_rng(0)
    image = np.full((24, 32, 3), 60) + rng.integers(0, 3, (24, 32, 3))
    image[:, 16:] += 120
    sure = np.clip((np.arange(32) - 16.5) / 4 + 0.5, 0.02, 0.98)  # 0.375 at the first
    likely = np.broadcast_to(np.stack([1 - sure, sure], -1), (24, 32, 2)).astype(np.float32)
    images, likely = np.uint8([image, image]), np.stack([likely] * 2)
    sizes = np.int32([[24, 32], [20, 28]])
    found = np.asarray(jax.jit(cosa_crf.refined)(images, likely, sizes))
    truth = np.broadcast_to(np.arange(32) >= 16, (24, 32))
    before, after = ((labels != truth).mean() for labels in (likely[0].argmax(-1), found[0]))
    assert before == 1 / 32 and after < 0.01
    assert (found[1, :20, :28] == truth[:20, :28]).mean() > 0.99
    assert (found[1, 20:] == 0).all() and (found[1, :, 28:] == 0).all()


def test_it_gets_the_image_and_what_is_masked(monkeypatch):
    """Its labels are scored as 'miou_crf'; the classes that an image does not have cannot win."""
    rng = np.random.default_rng(1)
    rgb = rng.integers(0, 256, (2, 6, 8, 3)).astype(np.uint8)
    data = {'mean': (0.4, 0.5, 0.6), 'std': (0.2, 0.3, 0.25)}
    logits = rng.normal(size=(2, 6, 8, 3)).astype(np.float32)
    present = np.array([[True, True, False], [True, False, True]])
    seen = Seen(
        np.float32((rgb / 255 - data['mean']) / data['std']), logits,
        rng.integers(-1, 3, (2, 6, 8)), present, np.int32([[6, 8]] * 2), (6, 8),
    )  # fmt: skip
    monkeypatch.setattr(cosa_cams, 'passes', lambda *_: [{'class': np.zeros((2, 2), np.float32)}])
    monkeypatch.setattr(cosa_cams, 'cams', lambda *_: {})
    monkeypatch.setattr(cosa_cams, 'KINDS', ())
    given = {}

    def refined(images, probabilities, sizes):
        given.update(images=images, probabilities=probabilities, sizes=sizes)
        return probabilities.argmax(-1)

    monkeypatch.setattr(cosa_crf, 'refined', refined)
    config = {'eval': {'protocol': 'whole', 'scales': (1.0,), 'crf': True}, 'data': data}
    sums = jax.device_get(cosa_scores.measures(None, seen, Context(None, ConfigDict(config))))
    np.testing.assert_array_equal(given['images'], rgb)
    likely = np.asarray(given['probabilities'])
    np.testing.assert_allclose(likely.sum(-1), 1, rtol=1e-5)
    assert (likely[0, ..., 2] == 0).all() and (likely[1, ..., 1] == 0).all()
    scores = cosa_scores.scores(sums)
    assert scores['miou_crf'] == scores['miou_masked'] > 0


def test_without_the_package_it_is_refused(monkeypatch):
    config = file.get_config('quickstart,eval.crf=True')
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match=r'^eval\.crf: got True, .*pip install pydensecrf2'):
        configs.finalise(config)
