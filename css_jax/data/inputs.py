"""Which images and videos are meant: files, folders and globs, each named by its stem."""

import glob
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from data_prep import images
from data_prep.folder import paths

VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v')
_TURNED = (5, 6, 7, 8)  # orientations of EXIF that exchange height and width
_ORIENTATION = 0x0112


class Input(NamedTuple):
    """One file.

    Attributes:
        path: where it is.
        is_video: else it is an image.
    """

    path: pathlib.Path
    is_video: bool

    @property
    def stem(self) -> str:
        """What its predictions are named by."""
        return self.path.stem


def find(sources: Sequence[str]) -> list[Input]:
    """Return the images and videos that are meant, in order, each once.

    Args:
        sources: files; folders, of which all images are taken, also in their folders, but hidden
            ones; and globs, in which `**` stands for any folders.

    Raises:
        FileNotFoundError: a source is not there, or has no image.
        ValueError: a file is neither image nor video, or two files have one stem.
    """
    found: dict[pathlib.Path, Input] = {}
    for source in sources:
        for path in _files(source):
            found.setdefault(path.resolve(), Input(path, _is_video(path)))
    stems: dict[str, Input] = {}
    for one in found.values():
        if (other := stems.setdefault(one.stem, one)) != one:
            raise ValueError(
                f'{other.path} and {one.path} have one stem, {one.stem!r}, which their predictions '
                'are named by; expected different ones, or one of them at a time'
            )
    return list(stems.values())


def image_size(path: pathlib.Path) -> tuple[int, int]:
    """Return an image's height and width as it is seen, by the head of its file.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no readable image; names it.
    """
    try:
        with images.head(path, path) as image:
            turned = image.getexif().get(_ORIENTATION, 1) in _TURNED
            return (image.width, image.height) if turned else (image.height, image.width)
    except images.TooLarge:
        raise
    except (SyntaxError, ValueError) as error:
        raise ValueError(f'{path} is no readable image: {error}') from error
    except OSError as error:
        if error.errno:  # of the file system
            raise
        expected = ', '.join(images.FORMATS)
        raise ValueError(f'{path} is no readable image: expected {expected}') from error


def _files(source: str) -> Iterator[pathlib.Path]:
    path = pathlib.Path(source).expanduser()
    if path.is_dir():
        yield from _some([file for file in paths.walk(path) if images.is_image(file)], path)
    elif path.exists():
        yield _checked(path)
    elif glob.has_magic(source):
        every = map(pathlib.Path, sorted(glob.glob(str(path), recursive=True)))
        files = [file for file in every if file.is_file()]
        good = [file for file in files if images.is_image(file) or _is_video(file)]
        yield from _some(good, path)
    else:
        raise FileNotFoundError(
            f'--source={source}: there is no such file or folder; expected images, folders, globs '
            'or videos'
        )


def _some(files: Sequence[pathlib.Path], source: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield the files, of which there must be one."""
    if not files:
        videos = f', or videos as files, as in {source}/*.mp4' if source.is_dir() else ''
        raise FileNotFoundError(
            f'--source={source}: no images there; expected {", ".join(images.ENDINGS)}{videos}'
        )
    yield from files


def _is_video(path: pathlib.Path) -> bool:
    return path.suffix.lower() in VIDEOS


def _checked(path: pathlib.Path) -> pathlib.Path:
    if not (path.suffix.lower() in images.ENDINGS or _is_video(path)):
        expected = ', '.join((*images.ENDINGS, *VIDEOS))
        raise ValueError(f'--source={path}: got {path.suffix or "no ending"}, expected {expected}')
    return path
