"""What a single file of weights holds, by the names of its tensors."""

from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor

from cxrsynth.console import counted
from cxrsynth.errors import ModelError

DENOISER = "model.diffusion_model."
EMA = "model_ema."
VAE = ("first_stage_model.", "vae.")
TEXT = ("cond_stage_model.", "conditioner.", "text_encoders.")
# Tensors of an autoencoder's training, which images do not need.
_TRAINING = ("first_stage_model.loss.", "first_stage_model.model_ema.", "vae.loss.")
# The transformer that latent diffusion trains with its U-Net, as Cheff does; its code is x-transformers.
_X_TRANSFORMERS = "cond_stage_model.transformer.attn_layers."
# Blocks of the transformers of Stable Diffusion 3 and of Flux.
_TRANSFORMER_ALONE = ("joint_blocks.", "double_blocks.")
_MOST_WORDS = 16  # tensors in a file that is taken for learned words
_TO_SAFETENSORS = "if it is pickled, first: cxrsynth convert FILE weights.safetensors"
# Self-attention of a U-Net without text.
_UNCONDITIONAL = ".1.qkv.weight"


def is_vae_tensor(name: str) -> bool:
    """Whether a tensor belongs to the autoencoder itself."""
    return name.startswith(VAE) and not name.startswith(_TRAINING)


def with_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names they have in a whole model, where a file holds the transformer of SD3 or Flux alone.

    Its authors publish it without the prefix that files of whole models have.
    """
    alone = any(name.startswith(_TRANSFORMER_ALONE) for name in state)
    return {f"{DENOISER}{name}" if alone else name: tensor for name, tensor in state.items()}


def what_it_holds(names: Collection[str]) -> str:
    """The networks in a file in latent diffusion's layout, for messages."""

    def any_of(*prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in names)

    networks = {
        "a U-Net or transformer": any_of(DENOISER),
        "its averaged weights (EMA)": any_of(EMA),
        "an autoencoder": any_of(*VAE),
        "text encoders": any_of(*TEXT),
    }
    return ", ".join(network for network, found in networks.items() if found)


def check_layout(source: Path, names: Collection[str]) -> None:
    """Refuse a file that is not in latent diffusion's layout, or not a model that text goes into.

    Raises:
        ModelError: saying what the file is, as far as its names give it away, and what can be done with it.
    """
    if any(name.startswith(_X_TRANSFORMERS) for name in names):
        raise ModelError(
            f"{source}: its text encoder is the transformer of latent diffusion's BERTEmbedder (x-transformers), as in"
            " Cheff and XReal; transformers has no such model, and its U-Net understands no other text encoder\n"
            "  not possible: images from text, by this model; its autoencoder and U-Net have layouts that diffusers"
            " reads (AutoencoderKL.from_single_file, UNet2DConditionModel.from_single_file)"
        )
    if any(name.startswith(DENOISER) and name.endswith(_UNCONDITIONAL) for name in names):
        raise ModelError(
            f"{source}: a U-Net that takes no text (self-attention alone)\n  expected: a text-to-image model"
        )
    if any(name.startswith(DENOISER) for name in names):
        return
    raise ModelError(f"{source}: {_other_layout(names)}")


def _other_layout(names: Collection[str]) -> str:
    first = sorted(names)[0]
    if any("lora" in name for name in names):
        return (
            f"LoRA weights, which are no model by themselves\n  use them with: generate --lora FILE; {_TO_SAFETENSORS}"
        )
    if any(name.startswith("middle_block.resnet_1.") for name in names):
        return (
            "a U-Net of MONAI (DiffusionModelUNet)\n  expected: the folder of its bundle, with configs/inference.json"
        )
    if any(name.startswith(("encoder.blocks.", "decoder.blocks.")) for name in names):
        return "an autoencoder of MONAI\n  expected: the folder of its bundle, with configs/inference.json"
    if any(name.startswith(("down_blocks.", "transformer_blocks.", "encoder.down_blocks.")) for name in names):
        return (
            "one network in diffusers' own names, no whole model\n"
            "  put it into a folder as diffusion_pytorch_model.safetensors, beside the config.json of the model it was"
            " trained from, and use it with: generate --unet or --vae FOLDER;"
            f" {_TO_SAFETENSORS}"
        )
    if any(name.startswith((*VAE, *TEXT)) for name in names):
        return f"holds {what_it_holds(names)}, but no U-Net\n  expected: a checkpoint of a text-to-image model"
    if len(names) <= _MOST_WORDS:
        return (
            f"{counted(len(names), 'tensor')}, such as {first}: no model\n"
            f"  words of textual inversion are used with: generate --embeddings FILE; {_TO_SAFETENSORS}"
        )
    return (
        f"{len(names)} tensors in an unknown layout, such as {first}\n"
        f"  expected: a checkpoint in latent diffusion's layout, with {DENOISER}*, first_stage_model.* and"
        " cond_stage_model.*"
    )
