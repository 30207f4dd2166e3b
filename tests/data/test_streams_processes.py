"""An epoch begun on some processes and finished on others shows every image once."""

import itertools

import numpy as np
import pytest

from css_jax.data import splits, streams


@pytest.fixture
def marked(data, monkeypatch):
    """Streams whose pixels are the number of their image."""

    def decode(source, index, reads):
        shown = np.full((64, 64, 3), index, np.uint8)
        return {'image': shown, **({'label': shown[..., 0]} if reads == 'mask' else {})}

    monkeypatch.setattr(streams, '_decode', decode)
    for stream in data.streams.values():
        stream.update(pad='reflect', resize=(1.0, 1.0))
    data.streams.labelled.update(count=10, batch_size=4)  # 2.5 batches an epoch
    return data


def shown(data, first, last, processes):
    """Numbers of the images of steps first to last - 1, by stream, in the batches' order."""
    parts = [streams.train_batches(data, 0, first, p, processes) for p in range(processes)]
    numbers = {name: [] for name in data.streams}
    for blocks in itertools.islice(zip(*parts, strict=True), last - first):
        for name in numbers:
            for block in blocks:
                images = block[name]['image'].reshape(len(block[name]['image']), -1)
                assert (images == images[:, :1]).all()
                numbers[name] += images[:, 0].tolist()
    return numbers


def test_an_epoch_goes_on_on_other_processes(marked):
    loaded = splits.load(marked)
    # Stopped in the middle of an epoch of both streams, each time.
    legs = [(0, 3, 1), (3, 9, 2), (9, 11, 4), (11, 14, 1)]
    found = {name: [] for name in marked.streams}
    for first, last, processes in legs:
        for name, numbers in shown(marked, first, last, processes).items():
            found[name] += numbers
    assert found == shown(marked, 0, 14, 1)
    for name, numbers in found.items():
        source = loaded[name]
        expected = sorted(splits.subset(name, marked.streams, loaded))
        size = len(expected)
        epochs = [numbers[i : i + size] for i in range(0, len(numbers) - size + 1, size)]
        assert len(epochs) == {'labelled': 5, 'unlabelled': 4}[name]
        for epoch in epochs:
            assert sorted(source.ids[number] for number in epoch) == expected
        assert epochs[0] != epochs[1]
