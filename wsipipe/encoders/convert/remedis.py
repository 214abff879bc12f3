"""REMEDIS: a TensorFlow SavedModel of a BiT ResNet -> timm's `resnetv2_*_bit`.

BiT's variables are `root_block`, `block1/unit01/{a,b,c}` with `standardized_conv2d/kernel` and
`group_norm/{gamma,beta}`, `a/proj` where a unit changes its width, and a last `group_norm`. Kernels
are (height, width, in, out) there and (out, in, height, width) here. What does not match this
scheme is refused, not skipped.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["convert_remedis", "timm_names"]

# Training state and the classifier, which features do not need.
_IGNORED = re.compile(
    r"(^|/)(global_step|head|save_counter|head_supervised|head_contrastive|projection_head)(/|$)"
    r"|momentum|Adam|lars",
    re.IGNORECASE,
)
_SCHEME = re.compile(
    r"(?:^|/)(?:root_block|block(?P<block>\d+)/unit(?P<unit>\d+)/(?P<part>[abc])(?P<proj>/proj)?)"
    r"/standardized_conv2d(?:_\d+)?/kernel$"
)
_NORM = re.compile(
    r"(?:(?:^|/)block(?P<block>\d+)/unit(?P<unit>\d+)/(?P<part>[abc]))?"
    r"(?:^|/)group_norm(?:_\d+)?/(?P<kind>gamma|beta)$"
)


def timm_names(variables: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """Rename and transpose BiT's variables.

    Args:
        variables: Name (without ":0") -> value.

    Returns:
        timm's key -> tensor.

    Raises:
        WeightsError: Lists the variables that do not fit the scheme.
    """
    import torch

    state: dict[str, Tensor] = {}
    strangers = []
    for name, value in variables.items():
        if _IGNORED.search(name):
            continue
        key = _conv_name(name) or _norm_name(name)
        if key is None:
            strangers.append(name)
            continue
        array = np.asarray(value, dtype=np.float32)
        if array.ndim == 4:
            array = array.transpose(3, 2, 0, 1)
        state[key] = torch.from_numpy(np.ascontiguousarray(array))
    if strangers or not state:
        raise WeightsError(
            "remedis",
            f"The SavedModel has {len(strangers)} variables that BiT does not have "
            f"({', '.join(strangers[:8])}).",
            "Is this a REMEDIS pathology model (path-50x1-remedis-m, path-152x2-remedis-m)?",
        )
    return state


def _conv_name(name: str) -> str | None:
    match = _SCHEME.search(name)
    if match is None:
        return None
    if match["block"] is None:
        return "stem.conv.weight"
    block = f"stages.{int(match['block']) - 1}.blocks.{int(match['unit']) - 1}."
    if match["proj"]:
        return f"{block}downsample.conv.weight"
    return f"{block}conv{'abc'.index(match['part']) + 1}.weight"


def _norm_name(name: str) -> str | None:
    match = _NORM.search(name)
    if match is None:
        return None
    kind = {"gamma": "weight", "beta": "bias"}[match["kind"]]
    if match["block"] is None:
        return f"norm.{kind}"
    block = f"stages.{int(match['block']) - 1}.blocks.{int(match['unit']) - 1}."
    return f"{block}norm{'abc'.index(match['part']) + 1}.{kind}"


def convert_remedis(folder: Path, output: Path) -> int:
    """Convert a SavedModel folder; returns the number of tensors.

    Raises:
        WeightsError: TensorFlow is not installed, or the model is not a BiT ResNet.
    """
    from wsipipe.encoders.convert.pickled import write_safetensors

    try:
        tensorflow: Any = importlib.import_module("tensorflow")
    except ImportError as error:
        raise WeightsError(
            "remedis",
            "Converting a SavedModel needs TensorFlow, which is not installed.",
            "Do it once, anywhere: pip install tensorflow. Extraction does not need it.",
        ) from error
    model = tensorflow.saved_model.load(str(folder))
    variables = {v.name.removesuffix(":0"): v.numpy() for v in model.variables}
    return write_safetensors(timm_names(variables), output)
