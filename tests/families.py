"""Tiny models of every family, built in code: real classes, random weights, layouts as users have them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from tests.conftest import make_tokenizer

_WORDS = "<pad> </s> <unk> heart size is normal no effusion left right lower lobe pneumonia clear lungs impression"
TOKENS = 24


def word_tokenizer(length: int = TOKENS) -> PreTrainedTokenizerFast:
    """One token a word, and one at the end, as T5's."""
    vocabulary = {word: place for place, word in enumerate(_WORDS.split())}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=length, **special)


def clip_config(width: int, **further: Any) -> CLIPTextConfig:
    """A CLIP of one layer for the tokenizer of `tests.conftest`."""
    tokenizer = make_tokenizer(TOKENS)
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **further,
    )


def autoencoder(**further: Any) -> AutoencoderKL:
    """A gray autoencoder of 4 channels that halves each side `halvings` times."""
    blocks = further.pop("halvings", 1) + 1
    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=4,
        block_out_channels=(8,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
        **further,
    )


def unet(width: int, **further: Any) -> UNet2DConditionModel:
    """A UNet a few channels wide."""
    given = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 8),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": width,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**given | further)


def t5(width: int = 16) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=len(_WORDS.split()), d_model=width, d_kv=4, d_ff=32, num_layers=1, num_heads=2)
    )


def _bert() -> BertModel:
    return BertModel(
        BertConfig(
            vocab_size=len(_WORDS.split()),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
        )
    )


def _xlm_roberta() -> XLMRobertaModel:
    return XLMRobertaModel(
        XLMRobertaConfig(
            vocab_size=len(_WORDS.split()),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=TOKENS + 2,
            pad_token_id=1,
        )
    )


def gemma(width: int = 8) -> Gemma2Model:
    return Gemma2Model(
        Gemma2Config(
            vocab_size=len(_WORDS.split()),
            hidden_size=width,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=4,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=1,
        )
    )


def stable_diffusion(encoder: Any = None, tokenizer: Any = None, scheduler: Any = None, **further: Any) -> Any:
    """Stable Diffusion, by default with CLIP."""
    return StableDiffusionPipeline(
        vae=further.pop("vae", None) or autoencoder(),
        text_encoder=encoder or CLIPTextModel(clip_config(16)),
        tokenizer=tokenizer or make_tokenizer(TOKENS),
        unet=unet(16, **further),
        scheduler=scheduler or DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> Any:
    """Two CLIPs, the second with a projection."""
    return StableDiffusionXLPipeline(
        vae=autoencoder(),
        text_encoder=CLIPTextModel(clip_config(16)),
        text_encoder_2=CLIPTextModelWithProjection(clip_config(24, projection_dim=16)),
        tokenizer=make_tokenizer(TOKENS),
        tokenizer_2=make_tokenizer(TOKENS),
        unet=unet(
            40,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 16,
            use_linear_projection=True,
        ),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        add_watermarker=False,
    )


def pixart() -> Any:
    """PixArt with T5, and the variance it predicts beside the noise."""
    return PixArtSigmaPipeline(
        tokenizer=word_tokenizer(300),
        text_encoder=t5(),
        vae=autoencoder(),
        transformer=PixArtTransformer2DModel(
            sample_size=8,
            num_layers=1,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=2,
            in_channels=4,
            out_channels=8,
            cross_attention_dim=16,
            caption_channels=16,
        ),
        scheduler=DPMSolverMultistepScheduler(),
    )


def sana() -> Any:
    """Sana with Gemma 2 and a deep-compression autoencoder."""
    vae = AutoencoderDC(
        in_channels=1,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    return SanaPipeline(
        tokenizer=word_tokenizer(2048),
        text_encoder=gemma(),
        vae=vae,
        transformer=SanaTransformer2DModel(
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=4,
            num_cross_attention_heads=2,
            cross_attention_head_dim=4,
            cross_attention_dim=8,
            caption_channels=8,
            sample_size=16,  # its pipeline takes multiples of 32 pixels
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def sd3(*, third: bool = True) -> Any:
    """Stable Diffusion 3, with T5 or without it."""
    return StableDiffusion3Pipeline(
        text_encoder=CLIPTextModelWithProjection(clip_config(16, projection_dim=16)),
        text_encoder_2=CLIPTextModelWithProjection(clip_config(16, projection_dim=16)),
        text_encoder_3=t5(32) if third else None,
        tokenizer=make_tokenizer(TOKENS),
        tokenizer_2=make_tokenizer(TOKENS),
        tokenizer_3=word_tokenizer(256) if third else None,
        vae=autoencoder(shift_factor=0.0609, scaling_factor=1.5035, use_quant_conv=False, use_post_quant_conv=False),
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_projection_dim=16,
            joint_attention_dim=32,
            pooled_projection_dim=32,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def flux(*, distilled: bool = True, dynamic: bool = True) -> Any:
    """Flux, with guidance as an input or without it; the shift depends on the image's size, or does not."""
    vae = autoencoder(shift_factor=0.1159, scaling_factor=0.3611, use_quant_conv=False, use_post_quant_conv=False)
    vae.register_to_config(sample_size=16)
    return FluxPipeline(
        text_encoder=CLIPTextModel(clip_config(16)),
        text_encoder_2=t5(),
        tokenizer=make_tokenizer(TOKENS),
        tokenizer_2=word_tokenizer(512),
        vae=vae,
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            guidance_embeds=distilled,
            axes_dims_rope=(2, 2, 4),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic, max_image_seq_len=1024),
    )


def lumina2() -> Any:
    """Lumina-Image 2 with Gemma 2; its pipeline takes autoencoders of factor 8 only."""
    return Lumina2Pipeline(
        tokenizer=word_tokenizer(2048),
        text_encoder=gemma(),
        vae=autoencoder(
            halvings=3, shift_factor=0.1159, scaling_factor=0.3611, use_quant_conv=False, use_post_quant_conv=False
        ),
        transformer=Lumina2Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            hidden_size=16,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=8,
            axes_dim_rope=(4, 2, 2),
            axes_lens=(300, 16, 16),
            cap_feat_dim=8,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
    )


CLASSES = ("Pneumonia", "No Finding", "Pleural Effusion")


def pixels(channels: int = 1, **further: Any) -> Any:
    """A UNet in pixel space, without text."""
    network = UNet2DModel(
        sample_size=16,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=4,
        **further,
    )
    return DDPMPipeline(network, DDPMScheduler())


BUILDERS: dict[str, Callable[[], Any]] = {
    "stable_diffusion": stable_diffusion,
    "stable_diffusion with BERT": lambda: stable_diffusion(_bert(), word_tokenizer()),
    "stable_diffusion with XLM-RoBERTa": lambda: stable_diffusion(_xlm_roberta(), word_tokenizer()),
    "stable_diffusion with T5": lambda: stable_diffusion(t5(), word_tokenizer()),
    "sdxl": sdxl,
    "pixart": pixart,
    "sana": sana,
    "sd3": sd3,
    "sd3 without T5": lambda: sd3(third=False),
    "flux": flux,
    "flux without guidance": lambda: flux(distilled=False, dynamic=False),
    "lumina2": lumina2,
}
# One of each: what does not depend on the text encoder is tested with these.
FAMILIES = ("stable_diffusion", "sdxl", "pixart", "sana", "sd3", "flux", "lumina2")
WITHOUT_TEXT: dict[str, Callable[[], Any]] = {
    "gray": pixels,
    "RGB": lambda: pixels(3),
    "by class": lambda: pixels(num_class_embeds=len(CLASSES)),
    "by timestep of class": lambda: pixels(class_embed_type="timestep"),
}
FLOW = ("sana", "sd3", "flux", "lumina2")


def build(name: str, folder: Path, *, spec: dict[str, object] | None = None) -> Path:
    """Save the model of that name with fixed weights; `spec` becomes its cxrsynth.json."""
    torch.manual_seed(0)
    pipeline = (BUILDERS | WITHOUT_TEXT)[name]()
    for part in ("unet", "transformer"):
        network = getattr(pipeline, part, None)
        if network is not None:
            # Some weights begin as zeros, behind which anything could be wrong.
            for weight in network.parameters():
                if not weight.any():
                    torch.nn.init.normal_(weight, std=0.02)
    pipeline.save_pretrained(folder, safe_serialization=True)
    if spec is not None:
        (folder / "cxrsynth.json").write_text(json.dumps(spec), encoding="utf-8")
    return folder
