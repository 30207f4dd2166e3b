"""Exported programs as ONNX, by jax2onnx, which is optional."""

import importlib
import json
import logging
import types

import jax
import jax.numpy as jnp

from css_jax.export.program import INPUT, OUTPUTS, Program

# jax2onnx pins an older orbax-checkpoint than ours, and asks for more than it reads here.
INSTALL = (
    "pip install --no-deps 'jax2onnx>=0.17.1,<0.18' && pip install 'onnx>=1.23,<1.24' "
    "'onnx-ir>=1.1,<1.2' 'onnxruntime>=1.32,<1.33'"
)
# What onnxruntime computes in on a CPU; parameters are float32 whatever the run computes in.
CHANGES = {'dtype': 'float32'}
OPSET = 21


def check() -> None:
    """Make sure that the file can be written.

    Raises:
        ValueError: jax2onnx, or what it needs, is not installed; says how to install it.
    """
    try:
        _jax2onnx()
    except ImportError as error:
        raise ValueError(
            f'--format=onnx needs jax2onnx, which is not installed ({error}): {INSTALL}'
        ) from None


def to_bytes(program: Program) -> tuple[bytes, str]:
    """Return the file of a program, and what is said of it.

    Args:
        program: B is symbolic in the file; H and W are fixed, as the matrices that resize maps are
            numbers in it.

    Raises:
        ValueError: jax2onnx has no operation for one of the program's.
    """
    images = jax.ShapeDtypeStruct(('batch', *program.size, 3), jnp.uint8)
    try:
        model = _jax2onnx().to_onnx(
            program.function,
            [images],
            model_name='css_jax',
            opset=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
        )
    except Exception as error:  # whatever the converter meets
        reason = f'{type(error).__name__}: {error}'.splitlines()[0]
        raise ValueError(
            f'jax2onnx cannot convert this network ({reason}); --format=stablehlo can'
        ) from error
    for name, value in program.about.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = name, value if isinstance(value, str) else json.dumps(value)
    return model.SerializeToString(), f'opset {OPSET}'


def _jax2onnx() -> types.ModuleType:
    # It warns of each of its examples whose library is not installed.
    logging.getLogger('jax2onnx').setLevel(logging.ERROR)
    return importlib.import_module('jax2onnx')
