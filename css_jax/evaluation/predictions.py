"""The folder of predictions: label maps, pictures of them, and what a labelling tool reads."""

import csv
import io
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from css_jax.data.inputs import Input
from css_jax.evaluation.outputs import Maps
from css_jax.run import files
from data_prep.folder import labelme
from data_prep.images import encode_png
from data_prep.records import VOID

FILE = 'predictions.json'  # what is in the folder, and which run it is of
CLASSES = 'classes.csv'
LABELLING = 'labelling'  # images, LabelMe's files and their classes: a folder of data_prep.folder
_FOLDERS = ('color', 'overlay', 'confidence', 'similarity', 'ignore', LABELLING)
_LEAST = 16  # pixels of a piece that is worth a polygon


class Folder(NamedTuple):
    """Where predictions go, and which there are of each image.

    Attributes:
        path: of the folder.
        names: of the classes.
        colours: uint8 [C, 3] RGB, of the classes.
        confidence: whether confidence is written.
        similarity: whether similarity is.
        threshold: least confidence of what is labelled for a labelling tool; None: nothing is.
    """

    path: pathlib.Path
    names: tuple[str, ...]
    colours: np.ndarray
    confidence: bool
    similarity: bool
    threshold: float | None

    def claim(self, inputs: Sequence[Input], about: Mapping[str, Any]) -> None:
        """Make the folder, and note in it what will be written; nothing else is overwritten.

        Args:
            inputs: whose predictions are written.
            about: what is noted of the run.

        Raises:
            ValueError: a file in the way is none that an earlier call has noted, is an input, or
                LabelMe's, which may have been corrected; or a video's name is that of a folder.
            OSError: the folder cannot be written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f'--target={self.path}: this is a file, expected a folder')
        noted = self._noted()
        wanted = [name for one in inputs for name in self._files(one)]
        wanted += [CLASSES, *([f'{LABELLING}/classes.txt'] if self.threshold is not None else [])]
        there = [name for name in wanted if (self.path / name).exists()]
        if foreign := [name for name in there if name not in noted]:
            raise ValueError(
                f'--target={self.path}: {foreign[0]} is there, and is no prediction of an earlier '
                'call; expected another folder'
            )
        corrected = [name for name in there if name.endswith('.json')]
        if corrected:
            raise ValueError(
                f'--target={self.path}: {corrected[0]} is there, and may have been corrected; '
                f'expected a folder without {LABELLING}/'
            )
        if taken := [one.path for one in inputs if one.is_video and one.stem in _FOLDERS]:
            raise ValueError(
                f'{taken[0]}: its frames would lie in {taken[0].stem}/, which is of pictures; '
                'expected another name'
            )
        own = {(self.path / name).resolve() for name in there}
        if given := [one.path for one in inputs if one.path.resolve() in own]:
            raise ValueError(f'--target={self.path}: {given[0]} is an input, and would be replaced')
        content = {**about, 'files': sorted({*noted, *wanted})}
        folders = {(self.path / name).parent for name in wanted}
        if blocked := [path for path in sorted(folders) if path.exists() and not path.is_dir()]:
            raise ValueError(f'--target={self.path}: {blocked[0]} is a file, expected a folder')
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            files.write(self.path / FILE, json.dumps(content, indent=1))
            self._write_classes()
        except OSError as error:
            raise OSError(f'--target={self.path} cannot be written: {error.strerror}') from error

    def write_image(self, one: Input, image: np.ndarray, found: Maps) -> None:
        """Write what is predicted of an image, uint8 RGB [H, W, 3]."""
        colour = self.colours[found.labels]
        self._write_png(f'{one.stem}.png', found.labels.astype(np.uint8))
        self._write_png(f'color/{one.stem}.png', colour)
        self._write_png(f'overlay/{one.stem}.png', overlay(image, colour))
        self.write_indicators(one.stem, found)
        if self.threshold is None:
            return
        labels = np.where(found.confidence >= self.threshold, found.labels, VOID).astype(np.int32)
        labels = labelme.without_small(labels, _LEAST)
        self._write_png(f'ignore/{one.stem}.png', np.uint8(255) * (labels == VOID))
        content = labelme.document(labels, self.names, one.path.name)
        self._write(f'{LABELLING}/{one.path.name}', one.path.read_bytes())
        self._write(f'{LABELLING}/{one.stem}.json', json.dumps(content))

    def write_frame(self, one: Input, number: int, image: np.ndarray, found: Maps) -> np.ndarray:
        """Write the label map of a frame of a video; return its overlay, uint8 RGB [H, W, 3]."""
        frame = f'{one.stem}/{number:06d}'
        self._write_png(f'{frame}.png', found.labels.astype(np.uint8))
        self.write_indicators(frame, found)
        return overlay(image, self.colours[found.labels])

    def write_indicators(self, name: str, found: Maps) -> None:
        """Write confidence and similarity, where they are wanted, as grey of 0 to 255."""
        for kind in self._indicators():
            grey = np.rint(255 * np.clip(getattr(found, kind), 0, 1)).astype(np.uint8)
            self._write_png(f'{kind}/{name}.png', grey)

    def without_frames(self, one: Input) -> None:
        """Remove the frames that an earlier call has written of a video of this name."""
        for folder in ('', *self._indicators()):
            for frame in (self.path / folder / one.stem).glob('[0-9]*.png'):
                if len(frame.stem) >= 6 and frame.stem.isdecimal():
                    frame.unlink()

    def _indicators(self) -> tuple[str, ...]:
        kinds = {'confidence': self.confidence, 'similarity': self.similarity}
        return tuple(kind for kind, wanted in kinds.items() if wanted)

    def _files(self, one: Input) -> Iterable[str]:
        """Return the files, or folders of frames, that are written of an input."""
        if one.is_video:
            return (one.stem, f'{one.stem}.mp4', *(f'{k}/{one.stem}' for k in self._indicators()))
        folders = ('color', 'overlay', *self._indicators())
        found = [f'{one.stem}.png', *(f'{folder}/{one.stem}.png' for folder in folders)]
        if self.threshold is not None:
            found += [f'ignore/{one.stem}.png', f'{LABELLING}/{one.path.name}']
            found += [f'{LABELLING}/{one.stem}.json']
        return found

    def _noted(self) -> set[str]:
        """Return the files that earlier calls have noted."""
        file = self.path / FILE
        if not file.exists():
            return set()
        try:
            return set(json.loads(file.read_text())['files'])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'{file} does not list predictions: {error!r}; expected another --target'
            ) from None

    def _write_classes(self) -> None:
        table = io.StringIO()
        rows = csv.writer(table, lineterminator='\n')
        rows.writerow(('id', 'name', 'colour'))
        for i, (name, colour) in enumerate(zip(self.names, self.colours.tolist(), strict=True)):
            rows.writerow((i, name, '#{:02x}{:02x}{:02x}'.format(*colour)))
        self._write(CLASSES, table.getvalue())
        if self.threshold is not None:
            self._write(f'{LABELLING}/classes.txt', '\n'.join((*self.names, '')))

    def _write_png(self, name: str, array: np.ndarray) -> None:
        self._write(name, encode_png(array))

    def _write(self, name: str, content: str | bytes) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, content)


def overlay(image: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Blend an image and the colours of its classes, both uint8 RGB [H, W, 3], in equal parts.

    Where the colour is black, as that of most datasets' background is, the image stays as it is.
    """
    blended = ((image.astype(np.uint16) + colour + 1) // 2).astype(np.uint8)
    return np.where(colour.any(-1, keepdims=True), blended, image)
