"""Exported programs as StableHLO: a zip file that jax alone reads.

`program` in it is what `jax.export` serialises, `about.json` is `Program.about`.
"""

import io
import json
import zipfile

import jax
import jax.numpy as jnp

from css_jax import parallel
from css_jax.export.program import Program

PLATFORMS = ('cpu', 'cuda', 'tpu')
PROGRAM, ABOUT = 'program', 'about.json'


def check() -> None:
    """Make sure that the file can be written.

    Raises:
        ValueError: flatbuffers, which jax serialises with, is not installed.
    """
    try:
        import flatbuffers  # noqa: F401
    except ModuleNotFoundError:
        raise ValueError(
            '--format=stablehlo needs flatbuffers, which is not installed: pip install flatbuffers'
        ) from None


def to_bytes(program: Program) -> tuple[bytes, str]:
    """Return the file of a program, and what is said of it.

    Args:
        program: B is symbolic in the file; H and W are fixed, as the matrices that resize maps are
            numbers in it.
    """
    from jax import export  # needs flatbuffers

    (batch,) = export.symbolic_shape('batch')
    images = jax.ShapeDtypeStruct((batch, *program.size, 3), jnp.uint8)
    exported = export.export(parallel.compile(program.function), platforms=PLATFORMS)(images)
    about = {**program.about, 'platforms': list(PLATFORMS), 'jax': jax.__version__}
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(ABOUT, json.dumps(about, indent=2) + '\n')
        archive.writestr(PROGRAM, bytes(exported.serialize()))
    return file.getvalue(), f'for {", ".join(PLATFORMS)}'
