"""Parameter names of the released code, as names of this package.

Every tensor of a checkpoint is either renamed or known to be unused; anything else is an error, never dropped in silence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from sleepfm.errors import ModelError

Rules = Sequence[tuple[str, str | None]]

# In SHHS, `EEG(sec)` is C3-A2 and `EEG` is C4-A1; the released parser gives each the other's name.
CHANNELS = {
    "EEG_C4": "EEG_C3",
    "EEG_C3": "EEG_C4",
    "EOG_Left": "EOG_L",
    "EOG_Right": "EOG_R",
    "EMG_Chin": "EMG_CHIN",
    "ECG": "ECG",
}

_FRAME_BACKBONE: Rules = (
    (r"model\.conv1\.", "stem.0."),
    (r"model\.bn1\.", "stem.1."),
    *(
        (rf"model\.layer{kernel}x{kernel}_{block + 1}\.0\.", f"branches.{branch}.{block}.")
        for branch, kernel in enumerate((3, 5, 7))
        for block in range(4)
    ),
    (r"feature_layer\.", "feature_layer."),
)


def _frame_backbone(prefix: str, target: str) -> Rules:
    return tuple((rf"{prefix}frame_backbone\.{old}", f"{target}frame_backbone.{new}") for old, new in _FRAME_BACKBONE)


NEURONET: Rules = (
    *_frame_backbone("", "encoder."),
    (r"autoencoder\.encoder_block\.", "encoder.blocks."),
    (r"autoencoder\.encoder_norm\.", "encoder.norm."),
    (r"autoencoder\.(patch_embed\.|cls_token$|pos_embed$)", r"encoder.\1"),
    (r"autoencoder\.decoder_block\.", "decoder_blocks."),
    (r"autoencoder\.(decoder_embed\.|decoder_norm\.|decoder_pred\.|mask_token$)", r"\1"),
    (r"autoencoder\.decoder_pos_embed$", "decoder_pos_embed"),
    (r"projectors\.", "projector."),
    (r"projectors_bn\.", None),
)

_BACKBONE = r"backbone_networks\.(\w+)\."

SYNTHSLEEPNET: Rules = (
    *((old, f"backbones.{new}") for old, new in _frame_backbone(_BACKBONE, r"encoders.<\1>.")),
    (_BACKBONE + r"encoder_block\.", r"backbones.encoders.<\1>.blocks."),
    (_BACKBONE + r"encoder_norm\.", r"backbones.encoders.<\1>.norm."),
    (_BACKBONE + r"(patch_embed\.|cls_token$|pos_embed$)", r"backbones.encoders.<\1>.\2"),
    (r"backbone_embedded\.(\w+)\.0\.", r"adapters.<\1>.0."),
    (r"backbone_embedded\.(\w+)\.2\.", r"adapters.<\1>.1."),
    (r"backbone_embedded\.(\w+)\.5\.", r"adapters.<\1>.3."),
    (r"modal_token_dict\.(\w+)$", r"modality_token.<\1>"),
    (r"multimodal_encoder_block\.", "blocks."),
    (r"multimodal_encoder_norm\.", "norm."),
    (r"(cls_token|mask_token)$", r"\1"),
    (r"decoder_embed\.", "decoder_embed."),
    (r"multimodal_decoder_block_dict\.(\w+)\.", r"decoders.<\1>.blocks."),
    (r"multimodal_decoder_pred_dict\.(\w+)\.", r"decoders.<\1>.pred."),
    (r"multimodal_decoder_norm\.", "decoder_norm."),
    (r"backbone_projector_dict\.(\w+)\.", r"projectors.<\1>."),
    (r"fusion_projector\.", "fusion_projector."),
    # Fixed position embeddings, which the model computes.
    (r"multimodal_(en|de)coder_pos_embed$|pos_embed$", None),
)

DOWNSTREAM: Rules = (
    *((rf"backbone\.(?:{old})", None if new is None else f"encoder.{new}") for old, new in SYNTHSLEEPNET),
    (r"fc\.", "head.layers."),
    (r"norm\.", "context.0.norm."),
    (r"mamba\.", "context.1.inner.forwards."),
)


def plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` without the wrappers that peft puts around modules and layers in their names."""
    return {
        name.replace("base_model.model.", "").replace(".base_layer.", ".").replace(".default.", "."): value
        for name, value in state.items()
    }


def rename(state: Mapping[str, Tensor], rules: Rules, origin: str) -> dict[str, Tensor]:
    """``state`` under this package's names.

    Raises:
        ModelError: a name that no rule knows.
    """
    renamed = {}
    for name, value in state.items():
        for old, new in rules:
            match = re.match(old, name)
            if match is None:
                continue
            if new is not None:
                target = match.expand(new) + name[match.end() :]
                renamed[re.sub(r"<(\w+)>", lambda found: canonical(found[1], origin), target)] = value
            break
        else:
            raise ModelError(f"{origin}: a tensor {name!r} {list(value.shape)}, which no released model has")
    return renamed


def canonical(name: str, origin: str) -> str:
    """This package's name of a channel of the reference. Raises :class:`ModelError`."""
    if name not in CHANNELS:
        raise ModelError(f"{origin}: channel {name!r}; the reference's channels are {', '.join(CHANNELS)}")
    return CHANNELS[name]
