"""Layouts of other people's checkpoints: how one is told, how its tensors are named and sized."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["KINDS", "Kind", "State"]

State = Mapping[str, Tensor]
_GATED = (
    (r"attention_V\.0", "V"),
    (r"attention_U\.0", "U"),
    (r"attention_weights", "w"),
)


@dataclass(frozen=True)
class Kind:
    """How one family of checkpoints is told, renamed and sized."""

    name: str
    mark: str
    renames: tuple[tuple[str, str], ...]
    settings: Callable[[State], dict[str, Any]]
    drop: str = r"$^"


def _clam(state: State) -> dict[str, Any]:
    rows, attention = state["attention_net.3.attention_c.weight"].shape
    multi = "classifiers.0.weight" in state
    heads = [k for k in state if re.fullmatch(r"instance_classifiers\.\d+\.weight", k)]
    return {
        "aggregator": "clam-mb" if multi else "clam-sb",
        "in_dim": state["attention_net.0.weight"].shape[1],
        "hidden": state["attention_net.0.weight"].shape[0],
        "attention_dim": attention,
        "n_classes": rows if multi else len(heads) or state["classifiers.weight"].shape[0],
    }


def _dsmil(state: State) -> dict[str, Any]:
    n_classes, in_dim = state["i_classifier.fc.0.weight"].shape
    return {
        "aggregator": "dsmil",
        "in_dim": in_dim,
        "n_classes": n_classes,
        "query_dim": state["b_classifier.q.0.weight"].shape[0],
        "pass_values": "b_classifier.v.1.weight" in state,
    }


def _sized(
    aggregator: str, first: str, head: str, **more: Any
) -> Callable[[State], dict[str, Any]]:
    def settings(state: State) -> dict[str, Any]:
        hidden, in_dim = state[first].shape
        return {
            "aggregator": aggregator,
            "in_dim": in_dim,
            "hidden": hidden,
            "n_classes": state[head].shape[0],
            **more,
        }

    return settings


def _ilra(state: State) -> dict[str, Any]:
    hidden = state["pooling.S"].shape[-1]
    return {
        "aggregator": "ilra",
        "in_dim": state["gab_blocks.0.project_forward.fc_k.weight"].shape[1],
        "hidden": hidden,
        "rank": state["gab_blocks.0.latent"].shape[1],
        "depth": len([k for k in state if k.endswith(".latent")]),
        "n_classes": state["classifier.weight"].shape[0],
    }


def _acmil(state: State) -> dict[str, Any]:
    base = _sized("acmil", "dimreduction.fc1.weight", "Slide_classifier.fc.weight")(state)
    return {**base, "branches": state["attention.attention_weights.weight"].shape[0]}


KINDS: tuple[Kind, ...] = (
    Kind(
        "clam",
        r"attention_net\.3\.attention_a",
        (
            (r"^attention_net\.0\.", "reduce."),
            (r"^attention_net\.3\.attention_a\.0\.", "score.V."),
            (r"^attention_net\.3\.attention_b\.0\.", "score.U."),
            (r"^attention_net\.3\.attention_c\.", "score.w."),
            (r"^classifiers\.", "head."),
            (r"^instance_classifiers\.", "instance_heads."),
        ),
        _clam,
        drop=r"^instance_loss_fn\.",
    ),
    Kind(
        "dtfd",
        r"attCls\.classifier",
        (
            (r"^dimReduction\.fc1\.", "reduce."),
            (r"^attCls\.classifier\.fc\.", "head."),
            (r"^classifier\.fc\.", "sub_head."),
            *((rf"^attCls\.attention\.{a}\.", f"score2.{b}.") for a, b in _GATED),
            *((rf"^attention\.{a}\.", f"score.{b}.") for a, b in _GATED),
        ),
        _sized("dtfd", "dimReduction.fc1.weight", "classifier.fc.weight"),
    ),
    Kind(
        "dsmil",
        r"b_classifier\.fcc",
        (
            (r"^i_classifier\.fc\.0\.", "instance."),
            (r"^b_classifier\.q\.", "query."),
            (r"^b_classifier\.v\.", "values."),
            (r"^b_classifier\.fcc\.", "mix."),
        ),
        _dsmil,
    ),
    Kind(
        "acmil",
        r"Slide_classifier",
        (
            (r"^dimreduction\.fc1\.", "reduce."),
            *((rf"^attention\.{a}\.", f"score.{b}.") for a, b in _GATED),
            (r"^classifier\.(\d+)\.fc\.", r"heads.\1."),
            (r"^Slide_classifier\.fc\.", "head."),
        ),
        _acmil,
    ),
    Kind(
        "abmil",
        r"^dimreduction\.fc1",
        (
            (r"^dimreduction\.fc1\.", "reduce."),
            *((rf"^attention\.{a}\.", f"score.{b}.") for a, b in _GATED),
            (r"^classifier\.fc\.", "head."),
        ),
        lambda s: {
            **_sized("abmil", "dimreduction.fc1.weight", "classifier.fc.weight")(s),
            "attention_dim": s["attention.attention_V.0.weight"].shape[0],
            "bias": "dimreduction.fc1.bias" in s,
        },
    ),
    Kind(
        "transmil",
        r"^pos_layer\.proj1",
        (
            (r"^cls_token$", "cls"),
            (r"^pos_layer\.proj\.", "position.convs.0."),
            (r"^pos_layer\.proj1\.", "position.convs.1."),
            (r"^pos_layer\.proj2\.", "position.convs.2."),
            (r"^_fc1\.0\.", "reduce."),
            (r"^layer1\.norm\.", "norms.0."),
            (r"^layer2\.norm\.", "norms.1."),
            (r"^layer1\.attn\.", "layers.0."),
            (r"^layer2\.attn\.", "layers.1."),
            (r"to_qkv\.", "qkv."),
            (r"to_out\.0\.", "out."),
            (r"res_conv\.", "residual."),
            (r"^_fc2\.", "head."),
        ),
        lambda s: {
            **_sized("transmil", "_fc1.0.weight", "_fc2.weight")(s),
            "heads": s["layer1.attn.res_conv.weight"].shape[0],
        },
    ),
    Kind(
        "ilra",
        r"^gab_blocks\.0\.latent",
        (
            (r"^gab_blocks\.(\d+)\.latent$", r"latents.\1"),
            (r"^gab_blocks\.(\d+)\.project_forward\.", r"down.\1."),
            (r"^gab_blocks\.(\d+)\.project_backward\.", r"up.\1."),
            (r"^pooling\.S$", "token"),
            (r"^pooling\.mha\.", "pool."),
            (r"multihead_attn\.", "attention."),
            (r"\.fc_([qkv])\.", r".\1."),
            (r"\.fc_o\.", ".out."),
            (r"\.ln([01])\.", r".norm\1."),
            (r"^classifier\.", "head."),
        ),
        _ilra,
    ),
    Kind(
        "rrt",
        r"^online_encoder\.cr_msa",
        (
            (r"^patch_to_emb\.0\.", "reduce.0."),
            (r"^online_encoder\.layers\.0\.norm\.", "norms.0."),
            (r"^online_encoder\.cr_msa\.norm\.", "norms.1."),
            (r"^online_encoder\.norm\.", "norms.2."),
            (r"^online_encoder\.layers\.0\.attn\.attn\.", "within."),
            (r"^within\.pe\.", "within.position."),
            (r"^online_encoder\.cr_msa\.attn\.phi$", "across.phi"),
            (r"^online_encoder\.cr_msa\.attn\.attn\.", "across.attention."),
            (r"^pool_fn\.attention\.attention\.", "score."),
            (r"^predictor\.", "head."),
        ),
        _sized("rrt", "patch_to_emb.0.weight", "predictor.weight"),
    ),
    Kind(
        "wikg",
        r"^W_head\.weight",
        (
            (r"^_fc1\.0\.", "reduce."),
            (r"^W_head\.", "w_head."),
            (r"^W_tail\.", "w_tail."),
            (r"^linear1\.", "add."),
            (r"^linear2\.", "multiply."),
            (r"^readout\.gate_nn\.", "readout."),
            (r"^fc\.", "head."),
        ),
        _sized("wikg", "_fc1.0.weight", "fc.weight"),
        drop=r"^gate_[UVW]\.",  # The reference holds these and never uses them.
    ),
    Kind(
        "s4",
        r"^s4_block\.1\.kernel",
        (
            (r"^_fc1\.0\.", "reduce.0."),
            (r"^s4_block\.0\.", "norm."),
            (r"^s4_block\.1\.D$", "ssm.skip"),
            (r"^s4_block\.1\.kernel\.C$", "ssm.c"),
            (r"^s4_block\.1\.kernel\.log_dt$", "ssm.log_dt"),
            (r"^s4_block\.1\.kernel\.log_A_real$", "ssm.log_a_real"),
            (r"^s4_block\.1\.kernel\.A_imag$", "ssm.a_imag"),
            (r"^s4_block\.1\.output_linear\.0\.", "ssm.mix."),
            (r"^classifier\.", "head."),
        ),
        lambda s: {
            **_sized("s4", "_fc1.0.weight", "classifier.weight")(s),
            "states": 2 * s["s4_block.1.kernel.C"].shape[1],
        },
    ),
)
