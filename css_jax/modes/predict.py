"""--mode predict: what a run says of images and videos, as files.

DIR is the run's folder, OUT that of the predictions. Of an image NAME.jpg:

- OUT/NAME.png: class ids, of the image's size as it is seen (EXIF's orientation is applied);
- OUT/color/NAME.png, OUT/overlay/NAME.png: in the colours of the classes, alone and on the image;
- OUT/confidence/NAME.png, OUT/similarity/NAME.png with --confidence;
- OUT/labelling/NAME.json, with the image, and OUT/ignore/NAME.png with --for_labelling.

Of a video: OUT/NAME/000000.png, ... and OUT/NAME.mp4. OUT/classes.csv has the classes.
"""

import functools
import itertools
import logging
import os
import pathlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np
from ml_collections import ConfigDict

from css_jax import predict as predictors
from css_jax.data import inputs, sources
from css_jax.data.inputs import Input
from css_jax.evaluation import predictions
from css_jax.run import progress
from data_prep import images

LOG = logging.getLogger('css_jax')
_THREADS = 4  # that read and write images
_MOST_PIXELS = 1 << 30  # that OpenCV decodes
_FPS = 25.0  # of a video that does not tell
_ERRORS = (OSError, ValueError, cv2.error)


class Asked(NamedTuple):
    """What is asked for beside label maps and pictures of them; the flags of these names.

    Attributes:
        evaluation: of a method with several, whose classes; None: the first one's.
        max_side: see `css_jax.predict.load`.
        max_pixels: most that an image may have, see `data_prep.images.allowed`.
        confidence: whether confidence, and similarity where there is one, are written.
        for_labelling: whether files for a labelling tool are.
        threshold: least confidence of what they label.
    """

    evaluation: str | None = None
    max_side: int | None = None
    max_pixels: int | None = None
    confidence: bool = False
    for_labelling: bool = False
    threshold: float = 0.9


def predict(
    config: ConfigDict | None,
    workdir: str | pathlib.Path,
    given: Sequence[str],
    target: str | pathlib.Path,
    which: str = 'last',
    asked: Asked = Asked(),  # noqa: B008 (cannot be changed)
) -> list[Input]:
    """Predict images and videos and write what was predicted.

    Args:
        config: the run's, with other keys of `eval` perhaps; None: as it is stored.
        workdir: the run's folder.
        given: files, folders, globs; see `css_jax.data.inputs.find`.
        target: folder of the predictions; made if missing. What an earlier call has written there
            is replaced, and nothing else.
        which: checkpoint, 'last', 'best' or a step.
        asked: what more is wanted.

    Returns:
        What was predicted.

    Raises:
        FileNotFoundError: there is no such image, run or checkpoint.
        ValueError: something that is asked for is not possible, and nothing was written; or some
            files could not be read, after the others have been written.
        OSError: the folder cannot be written.
    """
    if not 0 <= asked.threshold <= 1:
        raise ValueError(f'--threshold: got {asked.threshold}, expected a number from 0 to 1')
    if asked.max_pixels is not None and not 0 < asked.max_pixels <= _MOST_PIXELS:
        raise ValueError(
            f'--max_pixels: got {asked.max_pixels}, expected a number from 1 to {_MOST_PIXELS}'
        )
    target, every = pathlib.Path(target), inputs.find(given)
    _check_target(target, given)
    videos = [one for one in every if one.is_video]
    if asked.for_labelling and videos:
        raise ValueError(f'--for_labelling: got the video {videos[0].path}, expected images')
    predictor = predictors.load(
        workdir, which, None, asked.evaluation, max_side=asked.max_side, config=config
    )
    if asked.evaluation is None and len(predictor.evaluations) > 1:
        LOG.info(
            'the classes are those of %s; --evaluation takes %s',
            predictor.evaluation, ', '.join(predictor.evaluations),
        )  # fmt: skip
    folder = predictions.Folder(
        target,
        predictor.class_names,
        predictor.colours,
        confidence=asked.confidence,
        similarity=asked.confidence and predictor.has_similarity,
        threshold=asked.threshold if asked.for_labelling else None,
    )
    about = {
        'run': str(pathlib.Path(workdir).absolute()),
        'step': predictor.step,
        'evaluation': predictor.evaluation,
        'protocol': predictor.protocol,
    }
    folder.claim(every, about)
    LOG.info('step %d of %s: %s', predictor.step, workdir, predictor.protocol)

    with images.allowed(asked.max_pixels):
        broken = _images(predictor, folder, [one for one in every if not one.is_video])
    for video in videos:
        try:
            _video(predictor, folder, video)
        except ValueError as error:
            broken[video] = str(error)
    good = [one for one in every if one not in broken]
    print(f'predicted: {len(good)} of {len(every)}, written to {target}')
    if broken:
        reasons = '\n'.join(f'  {broken[one]}' for one in every if one in broken)
        raise ValueError(
            f'{len(broken)} of {len(every)} could not be predicted, the others are written:\n'
            f'{reasons}'
        )
    return good


def _check_target(target: pathlib.Path, given: Sequence[str]) -> None:
    """Refuse a folder of predictions inside of a folder of images: they would be images next."""
    for source in map(pathlib.Path, given):
        if source.is_dir() and target.resolve().is_relative_to(source.resolve()):
            raise ValueError(
                f'--target={target}: it lies in --source={source}, whose images would be mixed '
                'with predictions; expected a folder elsewhere'
            )


def _images(
    predictor: predictors.Predictor, folder: predictions.Folder, every: Sequence[Input]
) -> dict[Input, str]:
    """Predict images, those of a size together; return why some could not be."""
    broken: dict[Input, str] = {}
    groups: dict[tuple[int, int] | None, list[Input]] = {}
    for one in every:
        try:
            size = predictor.sizes.of(*inputs.image_size(one.path))
            groups.setdefault(size, []).append(one)
        except (OSError, ValueError) as error:
            broken[one] = str(error)
    batches = []
    for size, some in groups.items():
        most = predictor.sizes.at_once(size)
        batches += [some[start : start + most] for start in range(0, len(some), most)]
    if every:
        count = len(every) - len(broken)
        LOG.info('images: %d, in batches of one size: %d', count, len(batches))
    read = functools.partial(_read, depth=_depth(predictor, every))
    with ThreadPoolExecutor(_THREADS) as pool:
        for batch in progress.tracked(batches, 'batches of images'):
            pixels = dict(zip(batch, pool.map(read, batch), strict=True))
            broken |= {one: found for one, found in pixels.items() if isinstance(found, str)}
            good = [one for one in batch if one not in broken]
            found = predictor.maps([pixels[one] for one in good])
            arrays = [pixels[one] for one in good]
            list(pool.map(folder.write_image, good, arrays, found))  # raises what a thread raised
    return broken


def _depth(predictor: predictors.Predictor, every: Sequence[Input]) -> tuple[int, int]:
    """Return the values of 16-bit images that become 0 and 255: as the run's images had them."""
    own = sources.preparation(predictor.dataset, predictor.config.data.dir).depth
    return own or images.deep_range(one.path for one in every) or images.FULL


def _read(one: Input, depth: tuple[int, int]) -> np.ndarray | str:
    """Return an image, uint8 RGB [H, W, 3], or why it cannot be read."""
    try:
        return images.decode(one.path, one.path.read_bytes(), depth).pixels
    except _ERRORS as error:
        return str(error)


def _video(predictor: predictors.Predictor, folder: predictions.Folder, one: Input) -> None:
    """Predict the frames of a video, and write them and a video of their overlays.

    Raises:
        ValueError: it cannot be read.
    """
    capture = cv2.VideoCapture(str(one.path))
    frames = _frames(capture)
    first = next(frames, None)
    if first is None:
        raise ValueError(f'{one.path} is no readable video')
    height, width = first.shape[:2]
    most = predictor.sizes.at_once(predictor.sizes.of(height, width))
    count = max(1, round(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    fps = capture.get(cv2.CAP_PROP_FPS) or _FPS
    draft = folder.path / f'.{one.stem}.tmp.mp4'
    code = cv2.VideoWriter_fourcc(*'mp4v')
    writer = cv2.VideoWriter(str(draft), code, fps, (width, height))
    if not writer.isOpened():
        raise OSError(f'{folder.path / one.stem}.mp4 cannot be written')
    folder.without_frames(one)
    batches = _batches(itertools.chain([first], frames), most)
    told, number = f'{one.path.name}, batches of frames', itertools.count()
    try:
        for batch in progress.tracked(batches, told, -(-count // most)):
            for image, found in zip(batch, predictor.maps(batch), strict=True):
                writer.write(folder.write_frame(one, next(number), image, found)[..., ::-1])
        writer.release()
        os.replace(draft, folder.path / f'{one.stem}.mp4')
    finally:
        writer.release()
        draft.unlink(missing_ok=True)
    if (read := next(number)) < count:
        LOG.warning('warning: %s: %d of about %d frames could be read', one.path, read, count)


def _batches(frames: Iterator[np.ndarray], most: int) -> Iterator[list[np.ndarray]]:
    while batch := list(itertools.islice(frames, most)):
        yield batch


def _frames(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """Yield the frames of a video, uint8 RGB [H, W, 3]."""
    while True:
        there, frame = capture.read()
        if not there:
            return
        yield np.ascontiguousarray(frame[..., ::-1])
