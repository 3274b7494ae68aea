"""A data set made in parts, by runs that know nothing of each other: the bytes of one run, whatever befalls them."""

import json
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from filelock import FileLock
from typer.testing import CliRunner

from cxrsynth import api
from cxrsynth.cli import app
from cxrsynth.diffusion import model
from cxrsynth.diffusion.model import hardware_name
from cxrsynth.errors import ShardError
from cxrsynth.generation import generate
from cxrsynth.generation.dry_run import _shard_sizes
from cxrsynth.generation.lists import write_id_map
from cxrsynth.runtime import part_locks
from cxrsynth.runtime.part_locks import PartLocks
from cxrsynth.settings import Part, parse_part
from cxrsynth.shards.folder import OutputFolder
from cxrsynth.shards.place import LocalPlace
from cxrsynth.shards.plan import plan_digest, record_name, shard_name
from tests.generation.making import command, hashes, manifest, write_table
from tests.processes import TIMEOUT_S, Warm, Workers, free_port, process_group, torchrun

# 14 images in 7 shards of two batches.
OPTIONS = ("--images-per-report", "2", "--shard-size", "2", "--batch-size", "1")


class Set:
    """One data set, to be made in folders of a temporary place."""

    def __init__(self, home: Path, model: Path) -> None:
        self.home, self.model, self.table = home, model, write_table(home / "reports.csv")
        key = home / "id.key"
        key.write_text("0123456789abcdef" * 2)
        key.chmod(0o600)
        self.options = (*OPTIONS, "--id-key", str(key))

    def run(self, out: Path, *options: str) -> tuple[int, str]:
        """Run in this process: exit code and output."""
        result = CliRunner().invoke(app, command(self.table, out, self.model, *self.options, *options))
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stdout + result.stderr

    def start(self, out: Path, *options: str, log: Path) -> Warm:
        """Run in a process of its own."""
        arguments = command(self.table, out, self.model, *self.options, *options)
        return Warm("cxrsynth", *arguments, log=log, environment={"HF_HUB_OFFLINE": "1"})

    def launch(self, out: Path, *launcher: str, log: Path, part: str | None = None, imports: bool = False) -> Warm:
        """Run by torchrun."""
        arguments = command(self.table, out, self.model, *self.options, *(("--part", part) if part else ()))
        return torchrun(*launcher, command=arguments, log=log, imports=imports)


def test_the_progress_of_a_part_is_its_own(whole: tuple[Set, dict[str, str]], tmp_path: Path) -> None:
    """The log of a job that made 4 images of 14 must not say that 14 are there."""
    code, printed = whole[0].run(tmp_path / "out", "--part", "4/4")
    assert code == 0, printed
    assert "2/2 images" in printed
    code, printed = whole[0].run(tmp_path / "out", "--part", "2/4")
    assert code == 0, printed
    assert "4/4 images" in printed
    assert "14/14" not in printed


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Set, dict[str, str]]:
    """The set, and the hashes of the folder that one run makes of it."""
    home = tmp_path_factory.mktemp("parts")
    made = Set(home, tiny_model)
    code, printed = made.run(home / "whole")
    assert code == 0, printed
    return made, hashes(home / "whole")


@pytest.mark.parametrize(("text", "shards"), [("1/1", [0, 1, 2, 3, 4, 5, 6]), ("1/3", [0, 3, 6]), ("3/3", [2, 5])])
def test_a_part_is_every_nth_shard(text: str, shards: list[int]) -> None:
    part = parse_part(text)
    assert str(part) == text
    assert [index for index in range(7) if part.has(index)] == shards


@pytest.mark.parametrize("text", ["0/4", "5/4", "4", "1/", "/4", "1/0", "a/b", "-1/4", "1/4/2", "1.0/4", "٣/4"])
def test_what_is_no_part_is_refused(text: str, whole: tuple[Set, dict[str, str]], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected I/N"):
        parse_part(text)
    code, printed = whole[0].run(tmp_path / "out", "--part", text)
    assert code == 2
    assert "expected I/N" in printed
    assert not (tmp_path / "out").exists()


def test_a_part_and_finish_together_are_refused(whole: tuple[Set, dict[str, str]], tmp_path: Path) -> None:
    code, printed = whole[0].run(tmp_path / "out", "--part", "1/2", "--finish")
    assert code == 2
    assert "give one of the two" in printed
    with pytest.raises(ValueError, match="expected one of the two"):
        api.generate(whole[0].table, tmp_path / "out", part="1/2", finish=True)


@pytest.mark.parametrize("order", [pytest.param((1, 2, 3), marks=pytest.mark.slow), (3, 1, 2)])
def test_parts_in_any_order_give_the_bytes_of_one_run(
    order: tuple[int, ...], whole: tuple[Set, dict[str, str]], tmp_path: Path
) -> None:
    made, expected = whole
    out = tmp_path / "out"
    missing = 7
    for number in order:
        assert not (out / "manifest.json").exists()
        code, printed = made.run(out, "--part", f"{number}/3")
        assert code == 0, printed
        missing -= {1: 3, 2: 2, 3: 2}[number]
        said = f"part {number}/3 is made; {missing} shards of other parts missing"
        assert (said if missing else "14 images in 7 shards") in printed
    assert hashes(out) == expected


def test_parts_made_on_different_hardware_are_warned_of_and_listed(
    whole: tuple[Set, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They make one plan, so that spot machines can go on; the pixels may differ in their last bits."""
    made, _ = whole
    [here] = manifest(made.home / "whole")["hardware"]
    assert here == hardware_name(torch.device("cpu"))
    assert manifest(made.home / "whole")["hardware"] == {here: 7}
    assert "different hardware" not in (made.home / "whole" / "README.md").read_text()
    out = tmp_path / "out"
    assert made.run(out, "--part", "1/2")[0] == 0
    monkeypatch.setattr(generate, "hardware_name", lambda device: "another card")
    code, printed = made.run(out, "--part", "2/2")
    assert code == 0, printed
    assert manifest(out)["hardware"] == {here: 4, "another card": 3}
    for said in (f"{here}: 4 shards", "another card: 3 shards"):
        assert said in printed
    assert f"Made on different hardware: another card (3 shards); {here} (4 shards)." in (out / "README.md").read_text()


@pytest.mark.slow
def test_more_parts_than_shards(whole: tuple[Set, dict[str, str]], tmp_path: Path) -> None:
    made, expected = whole
    for number in range(9, 0, -1):
        assert made.run(tmp_path / "out", "--part", f"{number}/9")[0] == 0
    assert hashes(tmp_path / "out") == expected


@pytest.fixture
def bfloat16_pays(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """`--precision auto` stands for bfloat16 while the list holds True, for float32 else."""
    pays = [True]
    monkeypatch.setattr(model, "_bfloat16_pays", lambda: pays[0])
    return pays


def test_parts_on_cpus_that_choose_another_precision_take_that_of_the_plan(
    whole: tuple[Set, dict[str, str]], tmp_path: Path, bfloat16_pays: list[bool]
) -> None:
    made, _ = whole
    auto, out = ("--precision", "auto"), tmp_path / "out"
    code, printed = made.run(out, "--part", "1/2", *auto)
    assert code == 0, printed
    bfloat16_pays[0] = False
    code, printed = made.run(out, "--part", "2/2", *auto)
    assert code == 0, printed
    assert f"--precision auto: bf16, with which {out} was begun on another machine" in printed
    assert manifest(out)["plan"]["sampling"]["precision"] == "bf16"
    assert "already complete" in made.run(out, *auto)[1]


@contextmanager
def first_of_two_parts(out: Path, plan: dict[str, Any]) -> Iterator[None]:
    """A part that has begun and made no shard yet."""
    (out / ".cxrsynth").mkdir(parents=True)
    (out / ".cxrsynth" / "plan.json").write_text(json.dumps(plan))
    with FileLock(out / ".cxrsynth" / "part-1-of-2.lock"):
        yield


def test_parts_that_begin_together_with_another_precision_are_told_to_name_one(
    whole: tuple[Set, dict[str, str]], tmp_path: Path, bfloat16_pays: list[bool]
) -> None:
    made, _ = whole
    out = tmp_path / "out"
    with first_of_two_parts(out, manifest(made.home / "whole")["plan"]):
        code, printed = made.run(out, "--part", "2/2", "--precision", "auto")
    assert code == 2
    assert "sampling.precision: 'fp32' there, 'bf16' now" in printed
    assert "--precision auto depends on the machine: give all of them --precision fp32" in printed


def test_finish_needs_no_machine_like_those_that_made_the_shards(
    whole: tuple[Set, dict[str, str]], tmp_path: Path
) -> None:
    """A folder as GPUs leave it, completed where there is none."""
    made, _ = whole
    out = tmp_path / "out"
    state = out / ".cxrsynth"
    assert made.run(out, "--part", "1/2")[0] == 0
    with FileLock(state / "part-1-of-2.lock"):
        assert made.run(out, "--part", "2/2")[0] == 0
    plan = json.loads((state / "plan.json").read_text())
    plan["sampling"] |= {"device": "cuda", "precision": "fp16", "batch_size": 8}
    del plan["sampling"]["threads_per_batch"]
    (state / "plan.json").write_text(json.dumps(plan))
    for path in state.glob("cxr-*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"plan": plan_digest(plan)}))
    open_choices = ("--device", "auto", "--precision", "auto", "--batch-size", "8")
    code, printed = made.run(out, "--finish", *open_choices, "--dry-run")
    assert code == 0, printed
    assert "all of 7 shards are there; --finish would make no image" in printed
    assert not (out / "manifest.json").exists()
    assert "sampling.device: 'cuda' there, 'cpu' now" in made.run(out, *open_choices)[1]
    code, printed = made.run(out, "--finish", *open_choices)
    assert code == 0, printed
    assert manifest(out)["plan"]["sampling"] == plan["sampling"]


def test_a_dry_run_of_finish_says_what_is_missing(whole: tuple[Set, dict[str, str]], tmp_path: Path) -> None:
    code, printed = whole[0].run(tmp_path / "out", "--finish", "--dry-run")
    assert code == 0
    assert "7 shards of 7 missing: cxr-000000.tar, cxr-000001.tar, cxr-000002.tar ..." in printed
    assert "would make 14 images" not in printed
    assert not (tmp_path / "out").exists()


def test_finish_completes_parts_that_could_not(whole: tuple[Set, dict[str, str]], tmp_path: Path) -> None:
    made, expected = whole
    out = tmp_path / "out"
    code, printed = made.run(out, "--finish")
    assert code == 2
    assert "7 shards of 7 missing: cxr-000000.tar, cxr-000001.tar, cxr-000002.tar ..." in printed
    assert "run the command without --finish, or the parts" in printed
    assert not out.exists()
    assert made.run(out, "--part", "1/2")[0] == 0
    code, printed = made.run(out, "--finish")
    assert code == 2
    assert "3 shards of 7 missing" in printed
    with FileLock(out / ".cxrsynth" / "part-1-of-2.lock"):
        code, printed = made.run(out, "--part", "2/2")  # not the last to end
        assert (code, "part 2/2 is made; others are at work" in printed) == (0, True)
        assert not (out / "manifest.json").exists()
        code, printed = made.run(out, "--finish")
        assert code == 2
        assert "another run is making part 1/2" in printed
    code, printed = made.run(out, "--finish")
    assert code == 0, printed
    assert hashes(out) == expected
    assert "already complete" in made.run(out, "--finish")[1]


def test_finish_refuses_parts_of_another_plan(whole: tuple[Set, dict[str, str]], tmp_path: Path) -> None:
    made, expected = whole
    out, other = tmp_path / "out", tmp_path / "other"
    assert made.run(out, "--part", "1/2")[0] == 0
    assert made.run(other, "--part", "2/2", "--seed", "1")[0] == 0
    code, printed = made.run(other, "--finish")
    assert code == 2
    assert "seed: 1 there, 0 now" in printed
    # Copied by hand into the folder of the first.
    for path in [*other.glob("*.tar"), *other.glob(".cxrsynth/cxr-*.json")]:
        shutil.copy(path, out / path.relative_to(other))
    before = hashes(out)
    code, printed = made.run(out, "--finish")
    assert code == 2
    assert "3 shards of 7 missing: cxr-000001.tar, cxr-000003.tar, cxr-000005.tar" in printed
    assert hashes(out) == before
    assert made.run(out, "--part", "2/2")[0] == 0
    assert hashes(out) == expected


@pytest.mark.slow
def test_finish_under_a_launcher_says_once_what_is_missing(whole: tuple[Set, dict[str, str]], tmp_path: Path) -> None:
    made, expected = whole
    out = tmp_path / "out"
    arguments = command(made.table, out, made.model, *made.options, "--finish")

    def finished() -> tuple[list[int], list[str]]:
        with process_group(2) as environments:
            both = [
                Warm("cxrsynth", *arguments, log=tmp_path / f"{rank}.log", environment=own | {"HF_HUB_OFFLINE": "1"})
                for rank, own in enumerate(environments)
            ]
            return [process.wait() for process in both], [process.printed() for process in both]

    codes, (first, second) = finished()
    assert codes == [2, 2]
    assert "[rank 0]" in first
    assert "7 shards of 7 missing" in first
    assert "missing" not in second
    assert "another process has ended before the work of all was done" in second
    assert not any("Traceback" in printed for printed in (first, second))
    assert not out.exists()
    assert made.run(out, "--part", "1/2")[0] == 0
    with FileLock(out / ".cxrsynth" / "part-1-of-2.lock"):
        assert made.run(out, "--part", "2/2")[0] == 0
    assert not (out / "manifest.json").exists()
    assert finished()[0] == [0, 0]
    assert hashes(out) == expected


@pytest.mark.parametrize(
    ("held", "options", "said"),
    [
        ("part-1-of-2.lock", ("--part", "1/2"), "another run is making part 1/2"),
        ("part-1-of-2.lock", ("--part", "2/3"), "part 1/2, which has shards in common with part 2/3"),
        ("part-1-of-2.lock", (), "another run is making part 1/2"),
        ("lock", ("--part", "1/2"), "another run is writing there"),
    ],
)
def test_what_cannot_be_made_at_the_same_time_is_refused(
    held: str, options: tuple[str, ...], said: str, whole: tuple[Set, dict[str, str]], tmp_path: Path
) -> None:
    made, _ = whole
    out = tmp_path / "out"
    (out / ".cxrsynth").mkdir(parents=True)
    half_made = out / ".cxr-000000.tar.partial"
    half_made.write_bytes(b"of the run that holds the lock")
    (out / ".cxrsynth" / "plan.json").write_text(json.dumps(manifest(made.home / "whole")["plan"]))
    with FileLock(out / ".cxrsynth" / held):
        code, printed = made.run(out, *options)
        assert code == 2
        assert said in printed
        assert half_made.exists()
    assert not list(out.glob("*.tar"))


def test_a_part_leaves_what_another_one_is_writing(whole: tuple[Set, dict[str, str]], tmp_path: Path) -> None:
    made, expected = whole
    out = tmp_path / "out"
    assert made.run(out, "--part", "1/2")[0] == 0
    (out / ".cxr-000003.tar.partial").write_bytes(b"left by a part 2/2 that was killed")
    (out / ".cxr-000002.tar.partial").write_bytes(b"left by a part 1/2 that was killed")
    assert made.run(out, "--part", "1/2")[0] == 0
    assert sorted(path.name for path in out.glob(".*.partial")) == [".cxr-000003.tar.partial"]
    assert made.run(out, "--part", "2/2")[0] == 0
    assert hashes(out) == expected


def test_a_part_of_another_plan_is_refused_before_there_is_a_shard(
    whole: tuple[Set, dict[str, str]], tmp_path: Path
) -> None:
    made, _ = whole
    out = tmp_path / "out"
    with first_of_two_parts(out, manifest(made.home / "whole")["plan"]):
        code, printed = made.run(out, "--part", "2/2", "--seed", "1")
        assert code == 2
        assert "seed: 0 there, 1 now" in printed
    assert not list(out.glob("*.tar"))


def test_a_set_that_others_complete_while_the_model_loads_is_not_made_again(
    whole: tuple[Set, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cxrsynth.generation import plan

    made, expected = whole
    out, load = tmp_path / "out", plan.load_model

    def slowly(*args: object, **further: object) -> object:
        shutil.copytree(made.home / "whole", out)
        return load(*args, **further)  # type: ignore[arg-type]

    monkeypatch.setattr(plan, "load_model", slowly)
    code, printed = made.run(out, "--part", "1/2")
    assert code == 0
    assert "already complete" in printed
    assert hashes(out) == expected


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_of_parts_that_end_together_exactly_one_is_the_last(order: tuple[int, ...], tmp_path: Path) -> None:
    """In every order in which three parts can pass the gate, all shards being there."""
    places = [LocalPlace(tmp_path, option="--out", state=".cxrsynth", written=["cxr-*.tar"]) for _ in range(3)]
    for number, place in enumerate(places, 1):
        with place.starting(Part(number, 3)) as others:
            assert others == (number > 1)
    assert [places[index].is_last(lambda: True) for index in order] == [False, False, True]
    with pytest.raises(ShardError, match="another run is writing there"), places[order[0]].starting(Part(1, 3)):
        pass
    places[order[-1]].leave()


def test_parts_that_clean_a_complete_set_together_do_not_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has seen the same shards that the manifest does not list, such as empty ones."""
    (tmp_path / ".cxrsynth").mkdir()
    for index in range(40):
        (tmp_path / shard_name(index)).touch()
        (tmp_path / ".cxrsynth" / record_name(index, "0" * 64)).touch()
    seen, names = threading.Barrier(2, timeout=20), LocalPlace.names

    def names_seen_by_both(place: LocalPlace, folder: str = "") -> set[str]:
        found = names(place, folder)
        if not folder:
            seen.wait()
        return found

    monkeypatch.setattr(LocalPlace, "names", names_seen_by_both)
    manifest = {"shards": [{"name": shard_name(0)}]}
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: OutputFolder(tmp_path).clean(manifest), range(2)))
    assert [path.name for path in tmp_path.iterdir()] == [shard_name(0)]


def test_parts_of_a_complete_set_may_write_the_same_list_together(tmp_path: Path) -> None:
    """Each begins its file, then both end them."""
    begun = threading.Barrier(2, timeout=20)

    class TwoReports:
        def reports(self) -> Iterator[Any]:
            for index in range(2):
                yield SimpleNamespace(report_id=f"id-{index}", repeat=0)
                begun.wait()

    def write(number: int) -> None:
        settings = SimpleNamespace(id_map=tmp_path / "ids.csv", part=Part(number, 2), images_per_report=1)
        write_id_map(cast(Any, SimpleNamespace(settings=settings, id_key=b"0" * 32)), cast(Any, TwoReports()))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, (1, 2)))
    assert [line.split(",")[0] for line in (tmp_path / "ids.csv").read_text().split()] == ["report_id", "id-0", "id-1"]
    assert [path.name for path in tmp_path.iterdir()] == ["ids.csv"]


def test_a_gate_that_stays_shut_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_locks, "_GATE_S", 0.05)
    locks = PartLocks(tmp_path, "--out set")
    with FileLock(tmp_path / "gate.lock"), pytest.raises(ShardError, match=r"gate\.lock has been locked"), locks.gate():
        pass


def test_a_dry_run_of_a_part_says_what_is_its_own(whole: tuple[Set, dict[str, str]], tmp_path: Path) -> None:
    code, printed = whole[0].run(tmp_path / "out", "--part", "2/3", "--dry-run")
    assert code == 0
    assert "part 2/3: 2 shards" in printed
    assert "for each part" in printed
    assert "would have no shard" not in printed
    assert not (tmp_path / "out").exists()
    code, printed = whole[0].run(tmp_path / "out", "--part", "2/9", "--dry-run")
    assert code == 0
    assert "2 of 9 parts or processes would have no shard to make: a smaller --shard-size" in " ".join(printed.split())


def test_the_time_of_a_dry_run_is_that_of_who_makes_the_most() -> None:
    """Shards are made whole: one of a thousand images is not divided over sixteen parts."""
    assert _shard_sizes(1000, 1000, 16) == [1000]
    assert _shard_sizes(2500, 1000, 1) == [1000, 1000, 500]
    assert _shard_sizes(2500, 1000, 2) == [1000, 500]
    assert _shard_sizes(17_000, 1000, 16) == [1000, 1000]


def _seen(out: Path, number: int, moment: str) -> Callable[[], bool]:
    """Whether a part of four has come so far."""
    own = range(number - 1, 7, 4)
    if moment == "part lock":
        return (out / ".cxrsynth" / f"part-{number}-of-4.lock").exists
    if moment == "half a shard":
        return lambda: any((out / f".cxr-{index:06d}.tar.partial").exists() for index in own)
    return lambda: any((out / f"cxr-{index:06d}.tar").exists() for index in own)


@pytest.mark.slow
def test_four_parts_killed_at_random_and_started_again_in_any_order(
    whole: tuple[Set, dict[str, str]], tmp_path: Path
) -> None:
    made, expected = whole
    seed = int(os.environ.get("CXRSYNTH_TEST_SEED", random.randrange(1 << 30)))
    print(f"CXRSYNTH_TEST_SEED={seed}")  # noqa: T201 - pytest shows it with a failure
    draw, out = random.Random(seed), tmp_path / "out"
    kills = 0
    for attempt in range(12):
        numbers = draw.sample(range(1, 5), 4)
        # The last rounds are left in peace, so that each part ends in one.
        doomed = set(draw.sample(numbers, 3)) if attempt < 4 else set()
        running = {
            number: made.start(out, "--part", f"{number}/4", log=tmp_path / f"{attempt}-{number}.log")
            for number in numbers
        }
        for number in sorted(doomed):
            moment = draw.choice(("part lock", "half a shard", "a shard"))
            after = draw.uniform(0, 0.3)
            if attempt == 0:  # Early, where no part can be at its end yet: the test counts kills.
                moment, after = "part lock", 0.0
            kills += running[number].kill_soon(_seen(out, number, moment), after)
        for number, process in running.items():
            code = process.wait()
            assert code == (-signal.SIGKILL if number in doomed and code else 0), process.printed()
        assert all(hashes(out)[name] == expected[name] for name in hashes(out) if name.endswith(".tar"))
        if (out / "manifest.json").exists():
            break
    assert kills >= 3
    assert hashes(out) == expected


@pytest.mark.slow
def test_two_nodes_of_two_processes_give_the_bytes_of_one_run(
    whole: tuple[Set, dict[str, str]], tmp_path: Path
) -> None:
    made, expected = whole
    out = tmp_path / "out"
    port = free_port()
    nodes = [
        made.launch(
            out,
            *("--nnodes", "2", "--node-rank", str(node), "--nproc-per-node", "2"),
            *("--master-addr", "127.0.0.1", "--master-port", str(port)),
            log=tmp_path / f"{node}.log",
        )
        for node in range(2)
    ]
    for node in nodes:
        assert node.wait() == 0, node.printed()
    assert hashes(out) == expected
    assert sum(node.printed().count("14 images in 7 shards") for node in nodes) == 1


@pytest.mark.slow
def test_a_part_divided_over_processes(whole: tuple[Set, dict[str, str]], tmp_path: Path) -> None:
    made, expected = whole
    out = tmp_path / "out"
    # As users start it, whereas the workers of the other tests are forked.
    options = ("--standalone", "--nproc-per-node", "2")
    launched = made.launch(out, *options, log=tmp_path / "log", part="1/2", imports=True)
    assert launched.wait() == 0, launched.printed()
    assert sorted(path.name[4:10] for path in out.glob("*.tar")) == ["000000", "000002", "000004", "000006"]
    assert made.run(out, "--part", "2/2")[0] == 0
    assert hashes(out) == expected


@pytest.mark.slow
def test_one_whose_neighbor_was_killed_says_so_and_another_run_goes_on(
    whole: tuple[Set, dict[str, str]], tmp_path: Path
) -> None:
    made, expected = whole
    out = tmp_path / "out"
    arguments = command(made.table, out, made.model, *made.options)
    with process_group(2) as environments:
        first, second = (
            Warm("cxrsynth", *arguments, log=tmp_path / f"{rank}.log", environment=own | {"HF_HUB_OFFLINE": "1"})
            for rank, own in enumerate(environments)
        )
        second.kill_when(lambda: any(out.glob(".cxr-*.partial")) or any(out.glob("cxr-*.tar")))
        assert first.wait() == 2, first.printed()
    printed = first.printed()
    assert "Traceback" not in printed
    assert "another process has ended before the work of all was done" in printed
    assert made.run(out)[0] == 0
    assert hashes(out) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("nodes", "each"), [(1, 2), (2, 1)], ids=["one node", "two nodes"])
def test_torchrun_starts_killed_workers_again(
    nodes: int, each: int, whole: tuple[Set, dict[str, str]], tmp_path: Path
) -> None:
    """The first dies in the middle of its work, the others while they start.

    The agent's store keeps what killed ones wrote. With two nodes, each counts only the failures of its own workers.
    """
    made, expected = whole
    out = tmp_path / "out"
    port = free_port()
    agents = [
        made.launch(
            out,
            *("--nnodes", str(nodes), "--nproc-per-node", str(each), "--max-restarts", "6"),
            *("--rdzv-backend", "c10d", "--rdzv-id", "test", "--rdzv-endpoint", f"127.0.0.1:{port}"),
            log=tmp_path / f"{number}.log",
        )
        for number in range(nodes)
    ]
    workers = Workers(agents, 2)
    workers.kill_when(0, lambda: any(out.glob(".cxr-*.partial")) or any(out.glob("cxr-*.tar")))
    for _ in range(2):
        workers.kill_when(1)
    for agent in agents:
        assert agent.wait(3 * TIMEOUT_S) == 0, agent.printed()
    printed = "".join(agent.printed() for agent in agents)
    assert printed.count("exitcode: -9") >= 3
    assert hashes(out) == expected
    assert printed.count("14 images in 7 shards") == 1
