"""The records that the input is measured on, and the measurement at a tiny size."""

import io

import numpy as np
import pytest
from PIL import Image

from benchmarks import data


def test_drawn_images_are_as_large_as_vocs():
    drawn = [data.draw(np.random.default_rng(seed)) for seed in range(6)]
    for encoded, label in drawn:
        image = Image.open(io.BytesIO(encoded))
        assert image.format == 'JPEG' and image.size == label.shape[::-1]
        assert sorted(label.shape) == [375, 500]
        assert 0 in label and set(np.unique(label)) <= {*range(21), 255}
    # VOC 2012's archive has 17,125 images in 2 GB.
    assert 85e3 < np.mean([len(encoded) for encoded, _ in drawn]) < 110e3


@pytest.mark.filterwarnings('ignore')
def test_rows(monkeypatch):
    monkeypatch.setitem(data.IMAGES, 'small', 6)
    monkeypatch.setitem(data.SECONDS, 'small', 0.01)
    monkeypatch.setattr(data, 'THREADS', (1, 2))
    threads, work = [], {}
    for caption, row in data.rows('small'):
        assert '512' in caption
        if 'threads' in row:
            threads.append((row['threads'], row['resampling']))
            assert row['images/s'] > 0 and row['CPU ms an image'] > 0
        else:
            work[row['work']] = row['CPU ms an image']
    assert threads[:2] == [(1, 'cv2'), (2, 'cv2')] and threads[-1][1] == 'pil'
    *parts, whole = work.values()
    assert sum(parts) == pytest.approx(whole)
    assert all(ms > 0 for ms in parts[:-1])
