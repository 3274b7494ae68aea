"""The policy, a diffusion model with some trained weights, and the frozen baseline it is compared with."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from cxrsynth.diffusion.ace import (
    AdaptiveConditionEmbedding,
    ConditionEmbedding,
    SubspaceEmbedding,
    prompt_directions,
    word_directions,
)
from cxrsynth.diffusion.adapters import add_adapters, set_adapters
from cxrsynth.diffusion.model import DiffusionModel, load_model
from cxrsynth.diffusion.resolve import ResolvedModel
from cxrsynth.diffusion.sampler import encode_prompts
from cxrsynth.errors import ModelError
from cxrsynth.recipe.schema import AceSection, LoraSection
from cxrsynth.reports.conditions import CONDITIONS
from cxrsynth.settings import Precision

_PROMPTS_AT_ONCE = 64
_TOKENS = 16  # positions that blocks are added to, unless the recipe says otherwise


@dataclass(frozen=True)
class Policy:
    """The model being tuned. `unet_weights` and `ace_weights` are its trained parameters, by name, float32.

    The baseline shares every weight that is not trained. With adapters it is the same UNet with the adapters off, so
    there is no second copy in memory.
    """

    model: DiffusionModel
    unet_weights: dict[str, nn.Parameter] = field(repr=False)
    ace_weights: dict[str, nn.Parameter] = field(repr=False)
    exploration_std: float  # of the condition's shift, 0 for none
    shift_kl_weight: float | None  # of those shifts, None for that of the objective
    _baseline: DiffusionModel = field(repr=False)
    _adapters: bool

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """All trained parameters, by name."""
        return self.unet_weights | self.ace_weights

    @property
    def denoising_weights(self) -> dict[str, nn.Parameter]:
        """Parameters that learn from the denoising steps. An exploring ACE learns from its own action instead."""
        return self.unet_weights if self.exploration_std else self.weights

    @property
    def shifts(self) -> SubspaceEmbedding | None:
        """The embeddings whose shift is an action of the policy; None if there is no such action."""
        return self.model.ace if self.exploration_std and isinstance(self.model.ace, SubspaceEmbedding) else None

    @contextmanager
    def baseline(self) -> Iterator[DiffusionModel]:
        """The frozen baseline. With adapters, the policy's UNet must not be used at the same time."""
        if not self._adapters:
            yield self._baseline
            return
        set_adapters(self.model.denoiser, on=False)
        try:
            yield self._baseline
        finally:
            set_adapters(self.model.denoiser, on=True)

    @contextmanager
    def holding(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Within the context the weights named in `values` are those; nothing is copied.

        Args:
            values: by the names of `weights`, on the same device and of the same type; they may be changed in place.
        """
        weights = self.weights
        own = {name: weights[name].data for name in values}
        try:
            for name, value in values.items():
                weights[name].data = value
            yield
        finally:
            for name, value in own.items():
                weights[name].data = value

    def parameter_count(self) -> dict[str, int]:
        """Number of trained parameters, by part."""
        parts = {"unet": self.unet_weights, "ace": self.ace_weights}
        return {part: sum(weight.numel() for weight in weights.values()) for part, weights in parts.items()}


def load_policy(
    checkpoint: ResolvedModel,
    *,
    unet: str,
    lora: LoraSection,
    ace: AceSection | None,
    prompts: Callable[[DiffusionModel], Sequence[str]],
    device: torch.device,
    precision: Precision,
    gradient_checkpointing: bool,
    seed: int,
) -> Policy:
    """Load a model folder and mark what is trained.

    Args:
        checkpoint: the model to start from.
        unet: `full`, `lora` or `frozen`.
        lora: settings of the adapters.
        ace: settings of the embeddings, None for none. Embeddings that the folder already has are tuned further.
        prompts: of the training reports; the directions of a subspace are computed from them.
        device: where the networks go.
        precision: of forward passes.
        gradient_checkpointing: recompute the UNet's activations in the backward pass.
        seed: of the adapters' initial weights.

    Raises:
        ModelError: if the folder cannot be used.
    """
    model = load_model(checkpoint, device=device, precision=precision, mixed=True, float32_denoiser=unet == "full")
    baseline = model
    if gradient_checkpointing:
        model.denoiser.enable_gradient_checkpointing()
    if unet == "full":
        baseline = replace(model, denoiser=copy.deepcopy(model.denoiser).requires_grad_(False))
        model.denoiser.requires_grad_(True)
    elif unet == "lora":
        add_adapters(model.denoiser, model.family.adapted_layers, rank=lora.rank, alpha=lora.alpha, seed=seed)
    embeddings = _start_ace(model, ace, prompts)
    unet_weights = {
        f"{model.family.denoiser}.{name}": weight
        for name, weight in model.denoiser.named_parameters()
        if weight.requires_grad
    }
    trained = ace is not None and embeddings is not None
    named = embeddings.named_parameters() if trained and embeddings is not None else ()
    ace_weights = {f"ace.{name}": weight for name, weight in named if weight.requires_grad}
    return Policy(
        replace(model, ace=embeddings),
        unet_weights,
        ace_weights,
        exploration_std=0.0 if ace is None else ace.exploration_std or 0.0,
        shift_kl_weight=None if ace is None else ace.kl_weight,
        _baseline=baseline,
        _adapters=unet == "lora",
    )


def _start_ace(
    model: DiffusionModel, section: AceSection | None, prompts: Callable[[DiffusionModel], Sequence[str]]
) -> ConditionEmbedding | None:
    if section is None:
        return model.ace
    if section.subspace is not None:
        try:
            embedded, words = _embedded(model, prompts(model)), section.subspace // 2
            whole = prompt_directions(embedded, section.subspace - words)
            basis = torch.cat([whole, word_directions(embedded, words)]) if words else whole
        except ValueError as error:
            raise ModelError(f"train.ace.subspace: {error}\n  expected: reports that differ in their prompts") from None
        start = None if model.ace is None else model.ace.plain()
        return SubspaceEmbedding(basis, start=start).to(model.device)
    if model.ace is not None:
        if section.tokens is not None and section.tokens != model.ace.plain().tokens:
            raise ModelError(
                f"train.ace.tokens {section.tokens}: the model has embeddings of {model.ace.plain().tokens} positions"
                " already, which are tuned further\n  leave train.ace.tokens out, or give that number"
            )
        return copy.deepcopy(model.ace).requires_grad_(True)
    length, width = encode_prompts(model, [""])[0].text.shape[1:]
    tokens = section.tokens or _TOKENS
    if tokens > length:
        raise ModelError(
            f"train.ace.tokens {tokens}: the model's condition has {length} positions\n  expected: at most {length}"
        )
    return AdaptiveConditionEmbedding(width, tokens=tokens, conditions=CONDITIONS).to(model.device)


def _embedded(model: DiffusionModel, prompts: Sequence[str]) -> Tensor:
    """Text embeddings [N, L, D] float32 on the CPU, aligned as ACE is added to them."""
    parts = [prompts[first : first + _PROMPTS_AT_ONCE] for first in range(0, len(prompts), _PROMPTS_AT_ONCE)]
    return torch.cat([encode_prompts(model, part)[0].aligned_text().float().cpu() for part in parts])
