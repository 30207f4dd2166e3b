"""What the terms of a step of CoSA are, in plain numpy."""

import jax
import numpy as np


def resized(x, size):
    """Bilinear, pixel centres at halves, not antialiased: [B, h, w, C] float64."""
    x = np.asarray(x, float)
    for axis, out in ((1, size[0]), (2, size[1])):
        n = x.shape[axis]
        place = np.clip((np.arange(out) + 0.5) * n / out - 0.5, 0, n - 1)
        low = np.floor(place).astype(int)
        share = np.expand_dims(place - low, [a for a in range(4) if a != axis])
        high = np.minimum(low + 1, n - 1)
        x = (1 - share) * np.take(x, low, axis) + share * np.take(x, high, axis)
    return x


def nearest(x, side):
    places = np.arange(side) * x.shape[1] // side
    return x[:, places][:, :, places]


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-abs(x)))


def normalised(images, config):
    return (images / 255 - np.array(config.data.mean)) / np.array(config.data.std)


def passes(network, ctx, images, scales):
    """Outputs of the network by images [B, H, W, 3] and their mirror images, at each scale."""
    run, found = jax.jit(lambda x: ctx.evaluate(network, x)), []
    for scale in scales:
        view = resized(images, [int(scale * side) for side in images.shape[1:3]])
        view = np.concatenate([view, view[:, :, ::-1]])
        found.append(jax.device_get(run(view.astype(np.float32))))
    return found


def pairs(raws, size):
    """Of each scale the maps of images and of mirror images, mirrored back, at this size."""
    for raw in raws:
        plain, mirror = np.split(resized(raw, size), 2)
        yield plain, mirror[:, :, ::-1]


def merged(raws, size):
    """CAMs [B, H, W, K] in [0, 1]."""
    found = sum(np.maximum(np.maximum(*pair), 0) for pair in pairs(raws, size))
    found = found - found.min((1, 2), keepdims=True)
    return found / (found.max((1, 2), keepdims=True) + 1e-5)


def summed(raws, size):
    return sum(plain + mirror for plain, mirror in pairs(raws, size))


def inside(box, side):
    found = np.zeros((len(box), side, side), bool)
    for i, (top, bottom, left, right) in enumerate(box):
        found[i, top:bottom, left:right] = True
    return found


def labels_of(cams, present, low, high, box):
    """Labels from CAMs; -1: none. Image by image, of the classes that it has alone."""
    side, found = cams.shape[1], []
    for image, has in zip(cams, present, strict=True):
        classes, winners = np.flatnonzero(has), []
        for threshold in (low, high):
            scores = resized(image[None, ..., classes], (side // 2, side // 2))
            background = np.full((*scores.shape[:3], 1), threshold)
            shares = softmax(np.concatenate([background, scores], -1))
            winner = resized(shares, (side, side))[0].argmax(-1)
            winners.append(np.array([0, *(classes + 1)])[winner])
        below, above = winners
        found.append(np.where(above > 0, above, np.where(below == 0, 0, -1)))
    return np.where(inside(box, side), found, -1)


def reciprocals(largest, threshold, box):
    """1 / perplexity, 0 in the padding."""
    above, below = (largest - threshold) / (1 - threshold), (threshold - largest) / threshold
    distance = np.clip(np.where(largest >= threshold, above, below), 1e-4, 1)
    return np.where(inside(box, largest.shape[1]), 1 / -np.log(0.9 * distance), 0)


def halves(logits, label, weight):
    """Weighted mean of the cross-entropy over background, and over foreground."""
    scores = resized(logits, label.shape[1:])
    shares = np.take_along_axis(softmax(scores), np.maximum(label, 0)[..., None], -1)[..., 0]
    found = []
    for region in (label == 0, label > 0):
        total = weight[region].sum()
        found.append(-(weight * np.log(shares))[region].sum() / total if total else 0.0)
    return found


def energy_of(strong, logits, label, box, config):
    """The dense energy pair by pair, weighed as at the authors' size."""
    side, full = config.cosa.energy_side, strong.shape[1]
    levels = 255 * (strong * np.array(config.data.std) + np.array(config.data.mean))
    colours, within = nearest(levels, side), nearest(inside(box, full), side).astype(float)
    shares = resized(softmax(resized(logits, (full, full))), (side, side))
    gate = np.maximum(within - shares.max(-1), 0)
    gate[nearest(label, side) == -1] = 1
    total, n = 0.0, side * side
    place = np.stack(np.meshgrid(range(side), range(side), indexing='ij'), -1).reshape(n, 2)
    place = place / (100 * full / 448 * side / full)
    for i in range(len(strong)):
        features = np.concatenate([place, colours[i].reshape(n, 3) / 15], 1)
        squares = (features**2).sum(1)
        kernel = np.exp(-(squares[:, None] + squares - 2 * features @ features.T) / 2)
        q = (shares[i] * within[i][..., None]).reshape(n, -1)
        total -= (gate[i].reshape(n, 1) * q * (kernel @ q)).sum()
    return 1e-7 * 0.57 * (224 / side) ** 4 * total / len(strong)


def separation_of(cams, region, present):
    found = []
    for image, regions, has in zip(cams, region, present, strict=True):
        for c in np.flatnonzero(has):
            values = 1 / (1 + np.exp(-image[..., c].ravel()))
            similar = (1 - abs(values[:, None] - values)) / 0.5
            own, other = regions.ravel() == c + 1, regions.ravel() == 0
            positive = own[:, None] & own | other[:, None] & other
            positive &= ~np.eye(len(own), dtype=bool)
            if own.any() and other.any():
                negative = np.exp(similar[own][:, other]).mean()
                s = similar[positive]
                found.append((np.log(np.exp(s) + negative) - s).mean())
    return np.mean(found)


def assembled(one, batch, start, thresholds):
    """Every metric of a step from `start`, by the outputs of both networks; and the CAMs."""
    config, ctx, arrays = one.config, one.ctx, batch['images']
    present, box, size = arrays['classes'][:, 1:], arrays['box'], (32, 32)
    weak = normalised(arrays['image'], config)
    every = passes(start.teacher, ctx, weak, config.cosa.scales)
    cams = {
        'cam': merged([raw['cam'] for raw in every], size),
        'cam_aux': merged([every[-1]['cam_aux']], size),
    }
    logits = summed([raw['logits'] for raw in every], size)
    soft = softmax(np.where(arrays['classes'][:, None, None], logits, -1e5) / 0.01)
    out = jax.device_get(jax.jit(ctx.train)(start.student, weak.astype(np.float32))[0])
    out = {name: np.asarray(x, float) for name, x in out.items()}
    found, labels = {}, {}
    for head in ('class', 'class_aux'):
        x = out[head]
        found[head] = np.where(present, softplus(-x), softplus(x)).mean()
    for name, (low, high) in thresholds.items():
        labels[name] = label = labels_of(cams[name], present, low, high, box)
        weight = np.ones(label.shape)
        if config.cosa.weighting == 'perplexity':
            largest = (cams[name] * present[:, None, None]).max(-1)
            weight = reciprocals(largest, low, box)
        term = name.removeprefix('cam_') + '2seg'
        for region, value in zip(
            ('background', 'foreground'), halves(out['logits'], label, weight), strict=True
        ):
            found[f'{term}_{region}'] = value
    x, y = np.maximum(out['cam'], 0), resized(soft[..., 1:], (4, 4))
    found['seg2cam'] = (y * softplus(-x) + (1 - y) * softplus(x)).mean()
    found['energy'] = energy_of(weak, out['logits'], labels['cam'], box, config)
    total = found['class'] + found['class_aux'] + 0.05 * (found['seg2cam'] + found['energy'])
    total += 0.1 / 4 * sum(value for name, value in found.items() if '2seg_' in name)
    if config.cosa.separation:
        region = nearest(labels['cam_aux'], 4)
        found['separation'] = separation_of(out['cam'], region, present)
        total += config.cosa.separation * found['separation']
    found = {f'loss_{name}': value for name, value in found.items()} | {'loss': total}
    label, within = labels['cam'], inside(box, 32)
    coarse, guessed = nearest(label, 4), resized(soft, (4, 4)).argmax(-1)
    found['labelled'] = (label >= 0).sum() / within.sum()
    found['foreground'] = (label > 0).sum() / (label >= 0).sum()
    found['agreement'] = (coarse == guessed)[coarse >= 0].mean()
    return found, cams
