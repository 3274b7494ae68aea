"""Tiny models in the forms that models are published in: pickled folders, and files in latent diffusion's layout."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.models import resnet50
from transformers import BertConfig, BertForMaskedLM, Dinov2Config, Dinov2Model

State = dict[str, Tensor]
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def pickle_parts(folder: Path, *, shards: int = 1) -> None:
    """Turn every safetensors file of a model folder into pickled weights, as older releases wrote them."""
    for path in sorted(folder.glob("*/*.safetensors")):
        stem = path.stem if path.stem.startswith("diffusion_") else f"pytorch_{path.stem}"
        state = load_file(path)
        names = sorted(state)
        files = [f"{stem}.bin"]
        if shards > 1:
            files = [f"{stem}-{place:05}-of-{shards:05}.bin" for place in range(1, shards + 1)]
            placed = {name: files[place % shards] for place, name in enumerate(names)}
            index = {"metadata": {"total_size": 1}, "weight_map": placed}
            (path.parent / f"{stem}.bin.index.json").write_text(json.dumps(index), encoding="utf-8")
        for place, file in enumerate(files):
            torch.save({name: state[name] for name in names[place::shards]}, path.parent / file)
        path.unlink()


def unet_to_ldm(state: State, *, layers: int = 1) -> State:
    """A UNet's tensors under latent diffusion's names."""
    return {_unet_name(name, state, layers + 1): tensor for name, tensor in state.items()}


def _unet_name(name: str, state: State, per_block: int) -> str:
    for own, other in _UNET.items():
        if name.startswith(f"{own}."):
            return name.replace(own, other, 1)
    kind, rest = name.split(".", 1)
    if kind == "mid_block":
        what, place, tensor = rest.split(".", 2)
        at = 1 if what == "attentions" else 2 * int(place)
        return f"middle_block.{at}.{_resnet(tensor) if what == 'resnets' else tensor}"
    block, what, place, tensor = rest.split(".", 3)
    down = kind == "down_blocks"
    first = int(block) * per_block + (1 if down else 0)
    blocks = "input_blocks" if down else "output_blocks"
    if what == "resnets":
        return f"{blocks}.{first + int(place)}.0.{_resnet(tensor)}"
    if what == "attentions":
        return f"{blocks}.{first + int(place)}.1.{tensor}"
    last = f"{blocks}.{first + per_block - 1}"
    if down:
        return f"{last}.0.op.{tensor.removeprefix('conv.')}"
    attended = any(other.startswith(f"up_blocks.{block}.attentions.") for other in state)
    return f"{last}.{2 if attended else 1}.{tensor}"


def _resnet(tensor: str) -> str:
    layer, weight = tensor.rsplit(".", 1)
    return f"{_RESNET[layer]}.{weight}"


def vae_to_ldm(state: State, *, levels: int = 2) -> State:
    """An autoencoder's tensors under latent diffusion's names."""
    found = {}
    for given, tensor in state.items():
        name = given.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        if "mid_block.attentions.0." in name:
            start, rest = name.split("mid_block.attentions.0.")
            layer, weight = rest.rsplit(".", 1)
            name = f"{start}mid.attn_1.{_VAE_ATTENTION[layer]}.{weight}"
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        found[name] = tensor
    return found


def clip_state(encoder: Any) -> State:
    """CLIP's tensors under the names of every release before transformers 5."""
    found = {}
    for name, tensor in encoder.state_dict().items():
        found[name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}"] = tensor
    return found


def open_clip_state(encoder: Any) -> State:
    """A text encoder's tensors under OpenCLIP's names, with query, key and value in one."""
    state, found = clip_state(encoder), {}
    top = {
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.final_layer_norm.weight": "ln_final.weight",
        "text_model.final_layer_norm.bias": "ln_final.bias",
    }
    renamed = {
        "text_model.encoder.layers": "transformer.resblocks",
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    for name, tensor in state.items():
        if name == "text_projection.weight":
            found["text_projection"] = tensor.T.contiguous()
        elif name in top:
            found[top[name]] = tensor
        elif "q_proj" in name:
            joined = torch.cat([state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"])
            start, weight = name.split("self_attn.q_proj.")
            start = start.replace("text_model.encoder.layers", "transformer.resblocks")
            found[f"{start}attn.in_proj_{weight}"] = joined
        elif not any(f"{part}_proj" in name for part in "kv"):
            for own, other in renamed.items():
                name = name.replace(own, other)
            found[name] = tensor
    return found


def prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def ldm_state(folder: Path, *, text: str = "clip") -> State:
    """All weights of a Stable Diffusion folder as one checkpoint of latent diffusion.

    Args:
        folder: of the model.
        text: whose layout the text encoders are in: `clip`, `open_clip`, `sdxl` (one of each), or `none`.
    """
    pipeline = DiffusionPipeline.from_pretrained(folder, safety_checker=None)
    state = prefixed("model.diffusion_model.", unet_to_ldm(pipeline.unet.state_dict()))
    state |= prefixed("first_stage_model.", vae_to_ldm(pipeline.vae.state_dict()))
    if text == "clip":
        state |= prefixed("cond_stage_model.transformer.", clip_state(pipeline.text_encoder))
    if text == "open_clip":
        state |= prefixed("cond_stage_model.model.", open_clip_state(pipeline.text_encoder))
    if text == "sdxl":
        state |= prefixed("conditioner.embedders.0.transformer.", clip_state(pipeline.text_encoder))
        state |= prefixed("conditioner.embedders.1.model.", open_clip_state(pipeline.text_encoder_2))
    return {name: tensor.clone().contiguous() for name, tensor in state.items()}


_SD3 = {
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
_SD3_BLOCK = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}


def sd3_to_single(state: State) -> State:
    """Names of Stability's own code for the transformer of Stable Diffusion 3."""
    last = max(int(name.split(".")[1]) for name in state if name.startswith("transformer_blocks."))
    swapped = ("norm_out.linear", f"transformer_blocks.{last}.norm1_context.linear")
    found = {"pos_embed": state["pos_embed.pos_embed"]}
    for name, tensor in state.items():
        layer, _, kind = name.rpartition(".")
        if layer.startswith(swapped):
            scale, shift = tensor.chunk(2)  # the code has them the other way round
            tensor = torch.cat([shift, scale])
        if layer in _SD3:
            found[f"{_SD3[layer]}.{kind}"] = tensor
        elif layer.startswith("transformer_blocks."):
            _, number, inside = layer.split(".", 2)
            if inside in _SD3_BLOCK:
                found[f"joint_blocks.{number}.{_SD3_BLOCK[inside]}.{kind}"] = tensor
    for number in range(last + 1):
        for block, names in (("x_block", "to_{}"), ("context_block", "add_{}_proj")):
            for kind in ("weight", "bias"):
                parts = [state[f"transformer_blocks.{number}.attn.{names.format(one)}.{kind}"] for one in "qkv"]
                found[f"joint_blocks.{number}.{block}.attn.qkv.{kind}"] = torch.cat(parts)
    return found


def without_weights(folder: Path, out: Path) -> Path:
    """A copy of a model folder that holds settings, tokenizers and scheduler alone."""
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors"))
    return out


BIOVIL_T_WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] . clear lungs left lower lobe pneumonia no pleural effusion heart is normal"
)


def biovil_t_image_state() -> State:
    """Tensors of BioViL-T's image model at random, by the names and shapes of hi-ml-multimodal's `ImageModel`."""
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.missing_previous_emb": (1, 256, 1, 1),
        "encoder.backbone_to_vit.weight": (256, 2048, 1, 1),
        "encoder.vit_pooler.type_embed": (2, 1, 256),
        "encoder.vit_pooler.norm_post.weight": (256,),
        "encoder.vit_pooler.norm_post.bias": (256,),
        "projector.model.0.weight": (128, 512, 1, 1),
        "projector.model.1.weight": (128,),
        "projector.model.1.bias": (128,),
        "projector.model.1.running_mean": (128,),
        "projector.model.1.running_var": (128,),
        "projector.model.3.weight": (128, 128, 1, 1),
        "projector.model.3.bias": (128,),
    }
    for block in range(3):
        for layer in ("norm1", "norm2", "attn.proj_q", "attn.proj_k", "attn.proj_v", "attn.proj", "mlp.fc1", "mlp.fc2"):
            name = f"encoder.vit_pooler.blocks.{block}.{layer}"
            shapes[f"{name}.weight"] = (256,) if layer.startswith("norm") else (256, 256)
            if layer not in ("attn.proj_q", "attn.proj_k", "attn.proj_v"):
                shapes[f"{name}.bias"] = (256,)
    made = {name: torch.randn(shape) / shape[-1] ** 0.5 for name, shape in shapes.items()}
    made["projector.model.1.running_var"] = torch.rand(128) + 0.5
    counted = {"projector.model.1.num_batches_tracked": torch.tensor(9)}
    return prefixed("encoder.encoder.", resnet50(weights=None).state_dict()) | made | counted


def biovil_t_text_state(config: BertConfig) -> State:
    """Tensors of its text model at random, by the names of `CXRBertModel`, with a pooler as published."""
    width, made = config.hidden_size, BertForMaskedLM(config).state_dict()
    made |= {"bert.pooler.dense.weight": torch.rand(width, width), "bert.pooler.dense.bias": torch.rand(width)}
    head = {
        "dense_to_hidden.weight": (128, width),
        "dense_to_hidden.bias": (128,),
        "LayerNorm.weight": (128,),
        "LayerNorm.bias": (128,),
        "dense_to_output.weight": (128, 128),
        "dense_to_output.bias": (128,),
    }
    return made | {f"cls_projection_head.{name}": torch.randn(shape) for name, shape in head.items()}


def biovil_t(folder: Path, image: State, *, pickled_text: bool = False) -> Path:
    """BioViL-T's folder as published, its text model narrow, with these tensors of the image model.

    The code that its settings name leaves a file `ran` where it runs.
    """
    words = BIOVIL_T_WORDS.split()
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        initializer_range=0.5,  # at the default of 0.02, the first token hardly depends on the others
    )
    folder.mkdir(parents=True)
    torch.save(image, folder / "biovil_t_image_model_proj_size_128.pt")
    text = {name: tensor.clone() for name, tensor in biovil_t_text_state(config).items()}
    if pickled_text:
        torch.save(text, folder / "pytorch_model.bin")
    else:
        save_file(text, folder / "model.safetensors", metadata={"format": "pt"})
    code = {"AutoConfig": "configuration_cxrbert.CXRBertConfig", "AutoModel": "modeling_cxrbert.CXRBertModel"}
    own = {"model_type": "cxr-bert", "architectures": ["CXRBertModel"], "projection_size": 128, "auto_map": code}
    (folder / "config.json").write_text(json.dumps(config.to_dict() | own))
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = {
        "do_lower_case": True,
        "model_max_length": 1000000000000000019884624838656,
        "tokenizer_class": "CXRBertTokenizer",
        "auto_map": {"AutoTokenizer": ["configuration_cxrbert.CXRBertTokenizer", None]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    for name in ("configuration_cxrbert.py", "modeling_cxrbert.py"):
        (folder / name).write_text(f"from pathlib import Path\nPath({str(folder / 'ran')!r}).touch()\n")
    return folder


# microsoft/rad-dino's settings.
RADDINO = {
    "config.json": {
        "architectures": ["Dinov2Model"],
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": 768,
        "image_size": 518,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-06,
        "layerscale_value": 1.0,
        "mlp_ratio": 4,
        "model_type": "dinov2",
        "num_attention_heads": 12,
        "num_channels": 3,
        "num_hidden_layers": 1,  # 12 in the published one
        "patch_size": 14,
        "qkv_bias": True,
        "torch_dtype": "float32",
        "use_swiglu_ffn": False,
    },
    "preprocessor_config.json": {
        "crop_size": {"height": 518, "width": 518},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5307, 0.5307, 0.5307],
        "image_processor_type": "BitImageProcessor",
        "image_std": [0.2583, 0.2583, 0.2583],
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": 518},
    },
}


def rad_dino(folder: Path, *, side: int = 518) -> Path:
    """microsoft/rad-dino as published, with one layer in place of twelve and random weights; `side` of its images."""
    folder.mkdir(parents=True)
    preparation = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    for name, content in RADDINO.items():
        (folder / name).write_text(json.dumps(content | (preparation if "crop_size" in content else {})))
    torch.manual_seed(0)
    state = Dinov2Model(Dinov2Config.from_pretrained(folder)).state_dict()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    # Weights for DINOv2's own code, which are no part of the model.
    save_file({"cls_token": torch.zeros(1, 1, 768)}, folder / "backbone_compatible.safetensors")
    save_file({"mlp.0.weight": torch.zeros(2048, 768)}, folder / "dino_head.safetensors")
    (folder / "README.md").write_text("---\nlicense: other\n---\n")
    return folder
