"""Batches side by side: order, memory, stopping; and group norm on small maps."""

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from torch import nn

from cxrsynth.diffusion import parallel
from cxrsynth.diffusion.model import DiffusionModel, load_model
from cxrsynth.diffusion.noise import seeded_noise
from cxrsynth.diffusion.parallel import SamplingPool, batch_bytes, batches_at_once
from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.diffusion.sampler import SamplingStopped, sample_images
from cxrsynth.settings import Precision, Sampler


@pytest.fixture(scope="module")
def networks(tiny_model: Path) -> DiffusionModel:
    return load_model(resolve_model(str(tiny_model)), device=torch.device("cpu"), precision=Precision.FP32)


@pytest.fixture
def three_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_cores")
def test_results_come_in_order_from_threads_of_one_core(networks: DiffusionModel) -> None:
    seen: list[int] = []

    def work(item: int) -> tuple[int, int]:
        seen.append(item)
        time.sleep(0.05 if item % 3 == 0 else 0.0)
        return item * 10, torch.get_num_threads()

    with SamplingPool(networks, batch_size=1, threads_per_batch=1) as pool:
        assert pool.batches == 3
        results = pool.map_in_order(work, iter(range(20)))
        first = next(results)
        assert max(seen) <= 5  # reads ahead no further than keeps three threads busy
        done = [first, *results]
    assert done == [(item, (item * 10, 1)) for item in range(20)]
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_cores")
def test_an_error_comes_out_and_the_rest_is_left(networks: DiffusionModel) -> None:
    def work(item: int) -> int:
        if item == 2:
            raise ValueError("item 2")
        return item

    done = []
    pool = SamplingPool(networks, batch_size=1, threads_per_batch=1)

    def run() -> None:
        with pool:
            for item, _ in pool.map_in_order(work, range(50)):
                done.append(item)

    with pytest.raises(ValueError, match="item 2"):
        run()
    assert done == [0, 1]
    assert pool.stopped.is_set()


@pytest.mark.usefixtures("three_cores")
def test_an_error_in_reading_ahead_comes_after_the_results_before_it(networks: DiffusionModel) -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise ValueError("item 3")

    done = []
    pool = SamplingPool(networks, batch_size=1, threads_per_batch=1)

    def run() -> None:
        with pool:
            for item, _ in pool.map_in_order(lambda item: item, items()):
                done.append(item)

    with pytest.raises(ValueError, match="item 3"):
        run()
    assert done == [0, 1, 2]


@pytest.mark.usefixtures("three_cores")
def test_a_batch_under_way_ends_when_the_context_is_left(networks: DiffusionModel) -> None:
    # Started in the background of a script, this process would ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    noise = seeded_noise(networks.latent_shape, 0, "k")[None]
    caught: list[BaseException] = []
    under_way = threading.Barrier(4)

    def work(_: int) -> None:
        under_way.wait(timeout=60)
        try:
            sample_images(networks, [""], noise, sampler=Sampler.DDIM, steps=1000, guidance=1.0, stopped=pool.stopped)
        except SamplingStopped as error:
            caught.append(error)
            raise

    all_submitted = threading.Event()

    def items() -> Iterator[int]:
        for item in range(20):
            if item == 4:  # the last that is taken before the first result is waited for
                all_submitted.set()
            yield item

    def press_ctrl_c() -> None:
        under_way.wait(timeout=60)
        all_submitted.wait(timeout=60)
        # Python loses a signal that arrives just before a thread begins to wait: it is handled when the wait ends.
        time.sleep(0.3)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # type: ignore[arg-type]

    pool = SamplingPool(networks, batch_size=1, threads_per_batch=1)

    def run() -> None:
        with pool:
            made = pool.map_in_order(work, items())
            # Ctrl-C while this thread waits for the first batch, and all three threads sample.
            threading.Thread(target=press_ctrl_c).start()
            next(made)

    try:
        with pytest.raises(KeyboardInterrupt):
            run()
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(caught) == 3  # those under way were stopped, the others never began


@pytest.mark.usefixtures("three_cores")
def test_memory_and_threads_bound_the_number_of_batches(
    networks: DiffusionModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def batches(available: int, threads: int = 1) -> int:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))
        return batches_at_once(networks, batch_size=4, threads_per_batch=threads)

    monkeypatch.setattr(parallel, "_CGROUP", tmp_path)
    one = batch_bytes(networks, 4)
    assert batch_bytes(networks, 8) == 2 * one
    assert batches(100 * one) == 3
    assert batches(100 * one, threads=2) == 1
    assert batches(round(2.6 * one)) == 2
    assert batches(0) == 1
    with monkeypatch.context() as launcher:
        for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2")):
            launcher.setenv(name, value)
        launcher.setenv("MASTER_ADDR", "127.0.0.1")
        launcher.setenv("MASTER_PORT", "29500")
        assert batches(round(3.9 * one)) == 1
    # A container's limit counts where it is lower.
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text(f"{round(2.6 * one) + 1000}\n")
    assert batches(100 * one) == 2
    # Files that were read, which the kernel gives back, leave room.
    (tmp_path / "memory.current").write_text(f"{round(2 * one) + 1000}\n")
    assert batches(100 * one) == 1
    (tmp_path / "memory.stat").write_text(f"anon 1000\nactive_file 0\ninactive_file {round(2 * one)}\n")
    assert batches(100 * one) == 2
    (tmp_path / "memory.max").write_text("max\n")
    assert batches(100 * one) == 3


def test_an_accelerator_takes_one_batch_at_a_time(networks: DiffusionModel) -> None:
    on_gpu = SimpleNamespace(device=torch.device("cuda"))
    assert parallel.batches_at_once(on_gpu, batch_size=4, threads_per_batch=1) == 1  # type: ignore[arg-type]


@pytest.mark.usefixtures("three_cores")
def test_threads_may_encode_at_once(networks: DiffusionModel) -> None:
    prompts = ["left effusion. " * 300] * 8
    with torch.inference_mode():
        expected = networks.encode(prompts)[0].text

    @torch.inference_mode()
    def encode(_: int) -> torch.Tensor:
        assert not networks.fits(prompts[0])
        return networks.encode(prompts)[0].text

    with SamplingPool(networks, batch_size=1, threads_per_batch=1) as pool:
        for _, found in pool.map_in_order(encode, range(16)):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("size", [4, 8, 32])
def test_group_norm_gives_what_torch_gives_in_the_same_layout(size: int, networks: DiffusionModel) -> None:
    [norm, *_] = [m for m in networks.denoiser.modules() if isinstance(m, nn.GroupNorm)]
    plain = nn.GroupNorm(norm.num_groups, norm.num_channels, eps=norm.eps)
    plain.load_state_dict(norm.state_dict())
    maps = torch.randn(2, norm.num_channels, size, size).contiguous(memory_format=torch.channels_last)
    seen: list[torch.Tensor] = []
    handle = norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        ours = norm(maps)
        assert torch.allclose(ours, plain(maps), atol=1e-5)
    handle.remove()
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert seen[0].is_contiguous() is (size < 32)
