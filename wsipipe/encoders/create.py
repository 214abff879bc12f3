"""From a name to an encoder ready to run: build, load strictly, check, move to the device."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from wsipipe import weights as weights_store
from wsipipe.encoders.encoder import Encoder
from wsipipe.encoders.openvino import OpenVinoEncoder, openvino_place
from wsipipe.encoders.precision import resolve_precision
from wsipipe.encoders.registry import Recipe, find
from wsipipe.encoders.remap import to_network
from wsipipe.encoders.sourcing import locate
from wsipipe.errors import ConfigError, WeightsError

__all__ = ["SEED", "create_encoder", "load_into", "parameters_sha256"]

# Of random weights (`?pretrained=false`), so that a trial can be repeated.
SEED = 20_260_101


def create_encoder(
    name: str,
    *,
    weights: str | None = None,
    device: str | torch.device = "cpu",
    precision: str = "auto",
) -> Encoder:
    """Make an encoder: `name -> card -> weights -> network`.

    Args:
        name: Catalogue name or alias, `timm:ARCH`, `hf-hub:ORG/REPO`, a folder, a .py file or a
            .yaml card.
        weights: A checkpoint of one's own, instead of the published one.
        device: As torch names it; "auto" takes a GPU where there is one; "openvino" (its CPU) or
            "openvino:GPU" runs the network by OpenVINO.
        precision: "auto", "fp32", "bf16" or "fp16".

    Returns:
        The encoder, in evaluation mode, without gradients.

    Raises:
        UnknownEncoderError: No such name.
        GatedEncoderError: The makers' terms have to be accepted first.
        WeightsError: Weights cannot be had, or do not fit to the last key.
    """
    recipe = find(name)
    elsewhere = openvino_place(device)
    place = pick_device("cpu" if elsewhere else device)
    arithmetic = resolve_precision(precision, recipe.card.precision, place)
    if weights is None and not recipe.loads:
        network = build_seeded(recipe)
        recorded = recipe.card.sha256 if recipe.origin == "catalogue" else None
        digest = recorded or parameters_sha256(network)
        revision = recipe.card.revision
    else:
        located = locate(recipe, weights)
        network = load_into(
            recipe, weights_store.read_state(located.path, recipe.card.name, recipe.card.unwrap)
        )
        digest, revision = located.sha256, located.revision
    identity: dict[str, Any] = {
        "weights_sha256": digest,
        "revision": revision,
        "definition": recipe.definition,
    }
    if elsewhere is not None:
        return OpenVinoEncoder(
            recipe.card, network, precision=arithmetic, place=elsewhere, **identity
        )
    return Encoder(recipe.card, network, precision=arithmetic, device=place, **identity)


def pick_device(device: str | torch.device) -> torch.device:
    """A torch device; "auto" = the first GPU, else the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"Device {device!r} is not one that torch knows.") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"Device {device!r}: torch sees no GPU here.", "Use --device cpu or --device auto."
        )
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"Device {device!r}: torch sees {torch.cuda.device_count()} GPUs here.",
            "Their numbers begin at 0.",
        )
    return place


def build_seeded(recipe: Recipe) -> nn.Module:
    """Build with random weights from the fixed seed, leaving the caller's random state alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return recipe.build(recipe.card)


def load_into(recipe: Recipe, state: dict[str, Tensor]) -> nn.Module:
    """Build the network and load published weights into it, strictly.

    Args:
        recipe: What to build.
        state: Published key -> tensor.

    Returns:
        The network in float32, with every published tensor in its place.

    Raises:
        WeightsError: Keys are missing, left over, or of another shape; all are listed.
    """
    card = recipe.card
    if recipe.origin in ("file", "card") or recipe.origin.startswith("plugin"):
        # Other people's `build` may do more than lay out layers: it runs as they wrote it.
        network = build_seeded(recipe)
        weights_module(network).load_state_dict(_ready(recipe, network, state), strict=True)
        return network
    # Weights are assigned to a skeleton: no random initialisation, no second copy in memory.
    with torch.device("meta"):
        network = recipe.build(card)
    ready = _ready(recipe, network, state)
    weights_module(network).load_state_dict(ready, strict=True, assign=True)
    if any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers())):
        # Buffers that are computed, not stored (index tables, masks), need a real construction.
        network = build_seeded(recipe)
        weights_module(network).load_state_dict(ready, strict=True)
    return network


def _ready(recipe: Recipe, network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published weights under the network's names, in float32; refused if they do not fit."""
    target = weights_module(network)
    renamed = to_network(recipe.card, state, target)
    weights_store.check_fit(recipe.card.name, target, renamed)
    return {k: v.float() if v.is_floating_point() else v for k, v in renamed.items()}


def weights_module(network: nn.Module) -> nn.Module:
    """The part of a network that its published weights describe; by default all of it."""
    part = getattr(network, "weights_module", network)
    if not isinstance(part, nn.Module):
        raise WeightsError(
            type(network).__name__, "The attribute weights_module must be a torch.nn.Module."
        )
    return part


def parameters_sha256(network: nn.Module) -> str:
    """Hash of all parameters and stored buffers: the identity of weights without a file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(array.shape)} {array.dtype}\n".encode())
        digest.update(array.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
