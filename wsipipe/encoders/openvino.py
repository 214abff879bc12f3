"""`--device openvino`: the same network run by OpenVINO, for CPUs (and GPUs) that Intel knows best.

The torch network is converted, compared with what it was converted from, and let go. Identity and
weights are those of the torch encoder; the backend and how near it came are recorded in the feature
files.
"""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsipipe.encoders.card import EncoderCard
from wsipipe.encoders.compiled import least_cosine, noise_tiles
from wsipipe.encoders.encoder import Encoder
from wsipipe.encoders.precision import Resolved
from wsipipe.errors import ConfigError, EncoderError, MissingExtraError

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["LEAST_COSINE", "OpenVinoEncoder", "check_place", "openvino_place"]

# Between features of one tile by torch in fp32 and by OpenVINO; below, it is not the same encoder.
LEAST_COSINE: Final = 0.999
_HINTS: Final[dict[Resolved, str]] = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_CHECKED_TILES: Final = 4


class _Request(Protocol):
    def infer(self, inputs: list[NDArray[np.float32]], **options: bool) -> dict[int, Any]: ...


def openvino_place(device: str | torch.device) -> str | None:
    """OpenVINO's name: `openvino` -> "CPU", `openvino:GPU` -> "GPU"; None for torch's devices."""
    name, _, place = str(device).partition(":")
    return (place or "CPU").upper() if name == "openvino" else None


def check_place(place: str) -> None:
    """Whether OpenVINO is installed and has the device.

    Raises:
        MissingExtraError, ConfigError: It is not; it has not.
    """
    known = _import_openvino().Core().available_devices
    if place.partition(".")[0] not in {name.partition(".")[0] for name in known}:
        raise ConfigError(
            f"OpenVINO has no device {place} here.",
            f"It has {', '.join(known)}: --device openvino, or openvino:NAME.",
        )


class OpenVinoEncoder(Encoder):
    """See the module's docstring; made by `create_encoder(name, device="openvino")`.

    Attributes:
        cosine: Least cosine between features by torch in fp32 and by OpenVINO, over tiles of noise.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        ConfigError: The network cannot be converted.
        EncoderError: It is not the same afterwards.
    """

    def __init__(
        self,
        card: EncoderCard,
        network: nn.Module,
        *,
        precision: Resolved,
        place: str,
        **identity: Any,
    ) -> None:
        super().__init__(card, network, precision="fp32", **identity)
        self._openvino = _import_openvino()
        self.precision = precision
        self.backend = f"openvino {self._openvino.get_version().split('-')[0]}"
        self._place = place
        self._core = self._openvino.Core()
        check_place(place)
        tiles = noise_tiles(card, _CHECKED_TILES)
        with torch.inference_mode():
            expected = self.network(self.transform(torch.from_numpy(tiles))).float().numpy()
        self._model = self._convert(tiles)
        # The converted model has its own copy of the weights.
        self.network = nn.Identity()
        self.run_side_by_side(1)
        self.cosine = least_cosine(expected, self.start(tiles).result())
        if not self.cosine >= LEAST_COSINE:
            raise EncoderError(
                card.name,
                f"Encoder {card.name}: features by OpenVINO in {precision} differ from torch's in "
                f"fp32 (cosine {self.cosine:.5f}, at least {LEAST_COSINE} is wanted).",
                "Use --device cpu, or --precision fp32.",
            )

    def run_side_by_side(self, streams: int) -> None:
        """Compile for so many forwards at once, each on its share of the processors."""
        options = {"INFERENCE_PRECISION_HINT": _HINTS[self.precision]}
        if self._place == "CPU":
            options |= {
                "NUM_STREAMS": str(streams),
                # As many threads as torch would use: the engine has counted the processors.
                "INFERENCE_NUM_THREADS": str(streams * torch.get_num_threads()),
                "ENABLE_CPU_PINNING": "NO",
            }
        self._compiled = self._core.compile_model(self._model, self._place, options)
        # A processor without bf16 computes in fp32 whatever is asked, and that is recorded.
        computed = self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        by_hint = {hint: precision for precision, hint in _HINTS.items()}
        self.precision = by_hint.get(computed, self.precision)
        self._requests = threading.local()

    def facts(self) -> dict[str, Any]:
        """As `Encoder.facts`, and how near the features are to torch's."""
        return {**super().facts(), "backend_cosine": round(self.cosine, 7)}

    def forward(self, tiles: NDArray[np.uint8] | Tensor) -> Tensor:
        """As `Encoder.forward`."""
        batch = self._as_tensor(tiles)
        with torch.inference_mode():
            pixels = self.transform(batch).numpy()
        found = next(iter(self._request().infer([pixels], share_inputs=True).values()))
        features = torch.from_numpy(np.array(found, np.float32))
        if features.shape != (len(batch), self.card.dim):
            raise self._wrong_shape(features.shape, len(batch))
        return features

    def _request(self) -> _Request:
        """This thread's own: a request serves one caller at a time."""
        request: _Request | None = getattr(self._requests, "request", None)
        if request is None:
            request = self._requests.request = self._compiled.create_infer_request()
        return request

    def _convert(self, tiles: NDArray[np.uint8]) -> Any:
        with torch.inference_mode():
            pixels = self.transform(torch.from_numpy(tiles))
        example = pixels.clone()  # tracing refuses tensors of inference mode
        edges = [-1, -1] if self.card.any_size else list(example.shape[2:])
        level = logging.root.level
        try:
            # Tracing warns that it is no longer the way, and of sizes that become constants.
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return self._openvino.convert_model(
                    self.network, example_input=example, input=[-1, 3, *edges]
                )
        # A converter of other people's networks: whatever it raises means that it cannot.
        except Exception as error:
            first_line = (str(error).strip().splitlines() or [""])[0].strip()
            raise ConfigError(
                f"Encoder {self.card.name} cannot be converted for OpenVINO "
                f"({type(error).__name__}: {first_line}).",
                "Use --device cpu.",
            ) from error
        finally:
            logging.root.setLevel(level)  # the converter mutes everybody's warnings when it fails


def _import_openvino() -> ModuleType:
    # Its package for usage statistics reports each import and conversion to its makers; nothing
    # leaves the house. An entry of None makes the import fail, and OpenVINO goes without.
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("openvino", "--device openvino", ("openvino",)) from error
    module: ModuleType = openvino
    return module
