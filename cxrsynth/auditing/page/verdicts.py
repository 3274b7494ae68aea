"""The three questions of who decides about a release, with the number that answers each, its floor and its limit."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cxrsynth.auditing.page.privacy import reason, shares
from cxrsynth.metrics.membership.inference import COMBINED, FALSE_POSITIVES, WITHOUT_MODEL
from cxrsynth.metrics.utility.cohorts import BOTH, PRETRAINED, REAL

Summary = Mapping[str, Any]

LOOK, HELP, FOUND = "Do they look right?", "Do they help?", "Can a patient be found in them?"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A question, what was measured in one sentence, what stands behind it, and what it cannot say."""

    question: str
    answer: str
    details: tuple[str, ...]
    limit: str
    section: str  # of the page, where the numbers come from


def verdicts(summary: Summary) -> list[Verdict]:
    """The verdicts on an audit, by its summary. They never say that a set is safe: no measure here can."""
    return [
        Verdict(
            LOOK,
            _closeness(summary),
            tuple(_looks(summary)),
            "Distances are in features of a network: what these do not see, they do not count.",
            "fidelity",
        ),
        Verdict(
            HELP,
            _help(summary),
            tuple(_lifts(summary)),
            _of_what(summary),
            "utility",
        ),
        Verdict(
            FOUND,
            _found(summary),
            tuple(_searches(summary)),
            "What these searches and attacks do not find may still be there.",
            "privacy",
        ),
    ]


def _overall(summary: Summary) -> Mapping[str, Any]:
    return next((row for row in summary["fidelity"] or () if row["group"] == "all"), {})


def _closeness(summary: Summary) -> str:
    if not summary["reference"]:
        return "Not compared with real images: there is no reference."
    row = _overall(summary)
    floor = row.get("floor")
    if not floor:
        missing = row.get("not_measured") or {}
        why = missing.get("all") or missing.get("floor")
        return f"Not measured against a floor of real images{f': {why}' if why else ''}."
    if not floor["frechet"]:
        return _closeness_of_few(row["mmd"], floor, images=row["compared"])
    made, real = floor["audited"]["frechet"], floor["frechet"]
    if made <= real["high"]:
        return f"As close to the real images as these are to each other, as far as {floor['images']:,} images tell."
    return f"{_times(floor['frechet_ratio'])} as far from the real images as these are from each other."


def _closeness_of_few(made: Mapping[str, float], floor: Mapping[str, Any], *, images: int) -> str:
    """By the distance that does not depend on the number of images: all that few can say is that they are far."""
    if made["low"] > floor["mmd"]["high"]:
        return "Further from the real images than these are from each other."
    if floor["images"] < images:
        return (
            f"No further from the real images than these are from each other, as far as {floor['images']:,} of them in"
            " one half of the patients tell."
        )
    return f"{floor['images']:,} images are too few to see a distance from the real ones."


def _times(ratio: float | None) -> str:
    return "Many times" if ratio is None else f"{ratio:.1f} times"


def _looks(summary: Summary) -> Iterator[str]:
    row = _overall(summary)
    floor = row.get("floor")
    if floor and not floor["frechet"]:
        made, real = row["mmd"], floor["mmd"]
        yield (
            f"MMD {made['value']:.3g} ({made['low']:.3g} to {made['high']:.3g}); between real images"
            f" {real['value']:.3g} ({real['low']:.3g} to {real['high']:.3g}), mean of ten draws of"
            f" {floor['images']:,} images each"
        )
    elif floor:
        real, made = floor["frechet"], floor["audited"]
        yield (
            f"Fréchet distance {made['frechet']:.3g}; between real images {real['value']:.3g}"
            f" ({real['low']:.3g} to {real['high']:.3g}), means of ten draws of {floor['images']:,} images each"
        )
        if "frechet" in (row.get("warnings") or {}):
            yield (
                "The ratio of these depends on the number of images, from which most of both comes here: MMD, which"
                f" does not, is {row['mmd']['value']:.3g} ({row['mmd']['low']:.3g} to {row['mmd']['high']:.3g})"
            )
        yield (
            f"{made['coverage']:.0%} of real images have one of these near them; {floor['coverage']['value']:.0%} have"
            " another real one"
        )
    total = summary["kept"] + summary["rejected"]
    yield f"{summary['kept']:,} of {total:,} images passed the checks and rules"
    accuracy = ((summary["reader_study"] or {}).get("scores") or {}).get("accuracy")
    if accuracy:
        low, high = f"{accuracy['low']:.0%}", f"{accuracy['high']:.0%}"
        yield f"Readers told real from synthetic in {accuracy['value']:.0%} of cases ({low} to {high}); 50% is guessing"


def _lift(summary: Summary, trained_on: str) -> list[Mapping[str, Any]]:
    rows = (summary["utility"] or {}).get("lift") or ()
    return [row for row in rows if row["group"] == "all" and row["trained_on"] == trained_on]


def _help(summary: Summary) -> str:
    ways = {"Added to real images": BOTH, "Trained on before real images": PRETRAINED}
    said = [_change(way, rows) for way, name in ways.items() if (rows := _lift(summary, name))]
    return (
        " ".join(said) or f"Not measured ({reason(summary, 'utility', '--utility, with a reference that has labels')})."
    )


def _change(way: str, rows: list[Mapping[str, Any]]) -> str:
    raised, lowered = (sum(one) for one in ([row["low"] > 0 for row in rows], [row["high"] < 0 for row in rows]))
    found = [
        f"raise the AUROC of {raised}" if raised else "",
        f"lower {'that' if raised else 'the AUROC'} of {lowered}" if lowered else "",
    ]
    said = " and ".join(filter(None, found)) or "measurably change the AUROC of none"
    return f"{way} they {said} of {len(rows)} {'finding' if len(rows) == 1 else 'findings'}."


def _lifts(summary: Summary) -> Iterator[str]:
    utility = summary["utility"] or {}
    if utility:
        yield _floor_of_help(utility)
    for row in utility.get("mean") or ():
        lift = row["lift"]
        if lift:
            over = f"{row['findings']} {'finding' if row['findings'] == 1 else 'findings'}"
            change = f"{lift['value']:+.3f} ({lift['low']:+.3f} to {lift['high']:+.3f})"
            yield f"{row['trained_on']}: mean AUROC {change} over {over}"
    apart = {
        name: [row for row in utility.get("gaps") or () if row["trained_on"] == name] for name in (REAL, PRETRAINED)
    }
    for name, rows in apart.items():
        if rows:
            unequal = sum(row["low"] > 0 or row["high"] < 0 for row in rows)
            yield f"{name}: underdiagnosis differs by sex or age in {unequal} of {len(rows)} comparisons"


def _floor_of_help(utility: Summary) -> str:
    """What real images reach without these."""
    alone = next((row for row in utility.get("mean") or () if row["trained_on"] == REAL), None)
    if alone is None:
        return "Floor: an AUROC of 0.5 is chance; training on real images alone could not be measured"
    auroc = alone["auroc"]
    value = f"{auroc['value']:.3f} ({auroc['low']:.3f} to {auroc['high']:.3f})"
    return f"Floor: real images alone reach a mean AUROC of {value}; 0.5 is chance"


def _of_what(summary: Summary) -> str:
    if not summary["utility"]:
        return "Training on them was not tried."
    model = summary["utility"].get("model")
    if model:
        return f"Of {model['name']}, trained from {model['starts_from']}; other networks may gain more or less."
    return "Of a linear classifier on the features of this audit; a network trained on pixels may gain more or less."


def _found(summary: Summary) -> str:
    """The answer of all three tests: copies of images, patients recognized, and members told by the weights."""
    return " ".join(filter(None, (_copies(summary), _recognized(summary), _told(summary))))


def _recognized(summary: Summary) -> str:
    """Whether more images are taken for patients of the reference than of other people's images are."""
    found = summary.get("reidentification")
    if not found:
        return ""
    share, false = found["share"], found["reference"]["false_matches"]
    many = share["low"] > max(found["false_match_rate"], false["high"])
    if many:
        return (
            f"{share['caught']:,} of {share['of']:,} are taken for a patient of the reference, more than of real images"
            " of other patients are."
        )
    return "No more are taken for a patient of the reference than of real images of other patients are."


def _told(summary: Summary) -> str:
    """Whether any attack on the model tells members, and whether the images alone do."""
    membership = summary.get("membership")
    if not membership:
        return ""
    attacks = membership["attacks"]
    clear = [name for name, one in attacks.items() if name != WITHOUT_MODEL and one["auc"]["low"] > 0.5]
    if attacks[WITHOUT_MODEL]["auc"]["low"] > 0.5:
        return "Members of the training set and others differ in themselves, so that attacks on the model say nothing."
    if COMBINED in clear or len(clear) > 1:
        return f"The model's weights tell who was in its training set ({', '.join(clear)})."
    if clear:
        tried = len(attacks) - 1
        return (
            f"One attack on the model ({clear[0]}) tells members of its training set from others, the other"
            f" {tried - 1} do not: of {tried} attacks on a model that tells nothing, one does by chance in up to"
            f" {1 - 0.975**tried:.0%} of audits."
        )
    return "Attacks on the model do not tell who was in its training set."


def _copies(summary: Summary) -> str:
    memorization, few = summary["memorization"], summary.get("copies")
    if memorization is None and few is not None:
        number = few["flagged"]
        found = f"{number:,} {'is a copy' if number == 1 else 'are copies'}" if number else "None is a copy"
        why = reason(summary, "memorization", "the reference is too small")
        return f"{found} of a real image. Near-duplicates were not looked for: {why}."
    if memorization is None:
        return f"Copies of real images were not looked for: {reason(summary, 'memorization', 'there is no reference')}."
    flagged = memorization["flagged"]
    if not flagged:
        return "None was found to be nearly a copy of a real image."
    return (
        f"{flagged:,} {'is' if flagged == 1 else 'are'} nearer to a real image than real images of different patients"
        " usually are to each other."
    )


def _searches(summary: Summary) -> Iterator[str]:
    memorization = summary["memorization"]
    if alarms := (memorization or {}).get("false_alarms"):
        of, low, high = alarms["of"], f"{alarms['low']:.1%}", f"{alarms['high']:.1%}"
        yield (
            f"Floor: of held-out real images of other patients, the search flags {alarms['caught']:,} of {of:,}"
            f" ({low} to {high}); of these images, {_share_flagged(summary)}"
        )
    if found_of := shares(memorization):
        worst, best = min(found_of, key=lambda name: found_of[name]), max(found_of.values())
        yield f"The search finds {found_of[worst]:.0%} ({worst}) to {best:.0%} of the copies planted in the reference"
    found = summary.get("reidentification")
    if found:
        real, follow_ups = found["reference"]["false_matches"], found["reference"]["found"]
        images, by_chance = found["share"], real["caught"] / real["of"]
        finds = f", which finds {follow_ups['caught'] / follow_ups['of']:.0%} of follow-up images" if follow_ups else ""
        yield (
            f"{images['caught'] / images['of']:.1%} are taken for a patient of the reference by a verifier{finds}; of"
            f" real images of other patients, {by_chance:.1%} are"
        )
    else:
        why = reason(summary, "reidentification", "it needs a reference")
        yield f"Whether a patient is recognized was not examined: {why}"
    membership = summary.get("membership")
    if membership:
        attacks = membership["attacks"]
        single = {name: one for name, one in attacks.items() if name not in (COMBINED, WITHOUT_MODEL)}
        best = max(single, key=lambda name: single[name]["auc"]["value"])
        yield (
            f"Members are told from others with an AUC of {_auc(attacks[COMBINED])} by all attacks on"
            f" {membership['model']['name']} together, {_auc(attacks[best])} by the best ({best}), and"
            f" {_auc(attacks[WITHOUT_MODEL])} without the model; 0.5 is guessing"
        )
        caught = attacks[best]["true_positives"].get(f"{FALSE_POSITIVES[0]:g}")
        if caught:
            yield (
                f"At {FALSE_POSITIVES[0]:.0%} false alarms, {best} finds {caught['value']:.0%} of the members"
                f" ({caught['low']:.0%} to {caught['high']:.0%})"
            )
    else:
        why = reason(summary, "membership", "it needs --model, --members and --non-members")
        yield f"The model itself was not attacked: {why}"


def _auc(attack: Summary) -> str:
    auc = attack["auc"]
    return f"{auc['value']:.2f} ({auc['low']:.2f} to {auc['high']:.2f})"


def _share_flagged(summary: Summary) -> str:
    images = summary["input"]["images"]
    return f"{summary['memorization']['flagged'] / images:.1%}" if images else "none, as there are none"
