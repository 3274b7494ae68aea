"""How the generator is measured: whose prompts are asked, what it is compared with, what is kept of an AUROC."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from cxrsynth.evidence.fidelity import frechet_distance
from cxrsynth.nano.build.films import Film
from cxrsynth.nano.build.measure_generator import _alike, _area, _asked, _kept, _scored
from cxrsynth.reports.prompt import Subject


def films(group: str, count: int) -> list[Film]:
    return [Film(f"{group}-{i}", f"p{i}", group, Subject(), (), (), padded=False) for i in range(count)]


def test_every_framed_film_is_asked_once_before_any_is_asked_again() -> None:
    framed, rest = [*films("nih", 5), *films("kermany_ped", 7)], films("nih64", 4)
    asked = _asked(framed, [*rest, *framed], 20, random.Random(0))
    assert len(asked) == 20
    assert {film.film_id for film in asked[:12]} == {film.film_id for film in framed}
    assert {film.film_id for film in asked[12:16]} == {film.film_id for film in rest}
    assert [film.group for film in asked[:12]] != [film.group for film in framed]
    assert asked == _asked(framed, [*rest, *framed], 20, random.Random(0))


def test_equal_films_asked_in_file_order_would_look_unlike() -> None:
    """Why the first images hold each film once: a mix of sources other than val's is a distance by itself."""
    rng = np.random.default_rng(0)
    real = np.concatenate((rng.normal(0, 1, (100, 4)), rng.normal(3, 1, (100, 4))))
    once = np.concatenate((rng.normal(0, 1, (100, 4)), rng.normal(3, 1, (100, 4))))
    repeated = np.concatenate((rng.normal(0, 1, (150, 4)), rng.normal(3, 1, (50, 4))))
    assert frechet_distance(repeated, real) > 10 * frechet_distance(once, real)


def test_train_films_are_drawn_with_the_sources_of_val() -> None:
    train = [*films("nih", 30), *films("hannover", 40), *films("kermany_ped", 2)]
    sources = ["nih"] * 6 + ["hannover"] + ["kermany_ped"] * 3
    places = _alike(sources, train, random.Random(0))
    assert len(set(places)) == len(places)
    assert Counter(train[place].group for place in places) == {"nih": 6, "hannover": 1, "kermany_ped": 2}


def test_what_is_kept_of_the_area_above_chance() -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(200, generator=rng)
    wanted = (logits + torch.randn(200, generator=rng) > 0.3).float()
    logits[:20] = logits[:20].round()  # ties
    expected = roc_auc_score(wanted.numpy(), logits.numpy())
    wanted[150:] = torch.nan
    seen = _scored(logits, wanted)
    assert [len(part) for part in seen] == [int((wanted == 1).sum()), int((wanted == 0).sum())]
    assert _area(*_scored(logits, wanted.nan_to_num(0.0))) != pytest.approx(expected)
    known = roc_auc_score(wanted[:150].numpy(), logits[:150].numpy())
    assert _area(*seen) == pytest.approx(known, abs=1e-6)
    perfect, chance = (np.array([[1.0]]), np.array([[0.0]])), (np.array([[1.0]]), np.array([[1.0]]))
    assert _kept(*seen, *perfect) == pytest.approx(2 * known - 1, abs=1e-6)
    assert _kept(*seen, *chance) == np.inf
