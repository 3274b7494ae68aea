"""The denoiser compiled by torch, for batches of one size."""

import time

import torch

from cxrsynth.diffusion.model import DiffusionModel
from cxrsynth.diffusion.parallel import SamplingPool
from cxrsynth.diffusion.sampler import sample_images
from cxrsynth.errors import ModelError, in_words
from cxrsynth.settings import Sampler


def compile_denoiser(
    model: DiffusionModel, pool: SamplingPool, *, batch_size: int, sampler: Sampler, steps: int, guidance: float
) -> float:
    """Compile the denoiser in place, and return how many seconds that took.

    It is called once, in a thread of the pool: torch compiles at the first call, for the shapes and the number of
    threads that it sees there. Other shapes would be compiled anew. Compiled code is kept in torch's own cache on disk
    (`TORCHINDUCTOR_CACHE_DIR`).

    Args:
        model: whose denoiser it is.
        pool: in which it will run.
        batch_size: of every batch to come.
        sampler: of every batch, as are `steps` and `guidance`.
        steps: denoising steps.
        guidance: 1, or else each batch is seen twice by the network.

    Raises:
        ModelError: if torch has no compiler here, or cannot compile this network.
    """
    from torch._dynamo.exc import TorchDynamoException  # takes a second to import

    started = time.monotonic()
    # Not `reduce-overhead`: CUDA graphs belong to the thread that records them.
    model.denoiser.compile(dynamic=False)

    def call(noise: torch.Tensor) -> None:
        sample_images(
            model,
            [model.any_prompt] * batch_size,
            noise,
            sampler=sampler,
            steps=steps,
            guidance=guidance,
            calls=1,
            stopped=pool.stopped,
        )

    try:
        for _ in pool.map_in_order(call, [torch.zeros(batch_size, *model.latent_shape)]):
            pass
    except TorchDynamoException as error:
        said = in_words(getattr(error, "inner_exception", error))  # without the class that Dynamo puts before it
        raise ModelError(
            f"--compile: torch cannot compile the network here: {said}\n"
            "  expected: a C++ compiler for a CPU, Triton for a GPU\n"
            "  install it, or leave --compile out"
        ) from None
    return time.monotonic() - started
