"""Words that data sets have for what an image shows, and the observations that these stand for."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Final, TypeAlias

from cxrsynth.images.layouts.paths import HOLDS_IMAGES, named, plain

# A word as `plain` writes it -> the observations that it stands for, none where it has no counterpart among them.
Vocabulary: TypeAlias = Mapping[str, tuple[str, ...]]

# Observations of which the data sets' words name only some kinds: without these, it may still be there.
BROADER: Final = frozenset({"Enlarged Cardiomediastinum", "Pleural Other", "Support Devices"})


def _vocabulary(words: Mapping[str, str], *, without: str = "") -> Vocabulary:
    """Observation -> its words, separated by commas; `without` are those without a counterpart."""
    found: dict[str, tuple[str, ...]] = {plain(word): () for word in without.split(",") if word.strip()}
    for observation, several in words.items():
        for word in several.split(","):
            found[plain(word)] = (*found.get(plain(word), ()), observation)
    return found


# Wang et al. 2017 (arXiv:1705.02315).
NIH: Final = _vocabulary(
    {
        "No Finding": "No Finding",
        "Cardiomegaly": "Cardiomegaly",
        "Lung Opacity": "Infiltration",
        "Lung Lesion": "Mass, Nodule",
        "Edema": "Edema",
        "Consolidation": "Consolidation",
        "Pneumonia": "Pneumonia",
        "Atelectasis": "Atelectasis",
        "Pneumothorax": "Pneumothorax",
        "Pleural Effusion": "Effusion",
        "Pleural Other": "Pleural_Thickening",
    },
    without="Emphysema, Fibrosis, Hernia",
)


# Bustos et al. 2019 (arXiv:1901.07441); its other words, over a hundred, have no counterpart.
PADCHEST: Final = _vocabulary(
    {
        "No Finding": "normal",
        "Enlarged Cardiomediastinum": "mediastinal enlargement, superior mediastinal enlargement",
        "Cardiomegaly": "cardiomegaly",
        "Lung Opacity": "infiltrates, alveolar pattern, interstitial pattern, reticular interstitial pattern,"
        "reticulonodular interstitial pattern, ground glass pattern, miliary opacities",
        "Lung Lesion": "nodule, multiple nodules, pulmonary mass, lung metastasis",
        "Edema": "pulmonary edema",
        "Consolidation": "consolidation",
        "Pneumonia": "pneumonia, atypical pneumonia",
        "Atelectasis": "atelectasis, laminar atelectasis, lobar atelectasis, segmental atelectasis, total atelectasis,"
        "round atelectasis, atelectasis basal",
        "Pneumothorax": "pneumothorax, hydropneumothorax",
        "Pleural Effusion": "pleural effusion, loculated pleural effusion, loculated fissural effusion,"
        "hydropneumothorax",
        "Pleural Other": "pleural thickening, apical pleural thickening, calcified pleural thickening, pleural plaques,"
        "calcified pleural plaques",
        "Fracture": "fracture, rib fracture, callus rib fracture, clavicle fracture, humeral fracture,"
        "vertebral fracture",
        # As CheXpert's labeler has it: valves and hardware, too.
        "Support Devices": "pacemaker, dual chamber device, single chamber device, dai, electrical device, NSG tube,"
        "endotracheal tube, tracheostomy tube, chest drain tube, catheter, central venous catheter,"
        "central venous catheter via jugular vein, central venous catheter via subclavian vein,"
        "central venous catheter via umbilical vein, reservoir central venous catheter, artificial heart valve,"
        "artificial mitral heart valve, artificial aortic heart valve, osteosynthesis material, humeral prosthesis,"
        "ventriculoperitoneal drain tube, gastrostomy tube, nephrostomy tube",
    }
)

# Nguyen et al. 2022 (arXiv:2012.15029), table 1: 22 local and 6 global labels.
VINDR: Final = _vocabulary(
    {
        "No Finding": "No finding",
        "Cardiomegaly": "Cardiomegaly",
        "Lung Opacity": "Lung Opacity, Infiltration",
        "Lung Lesion": "Nodule/Mass, Lung tumor",
        "Edema": "Edema",
        "Consolidation": "Consolidation",
        "Pneumonia": "Pneumonia",
        "Atelectasis": "Atelectasis",
        "Pneumothorax": "Pneumothorax",
        "Pleural Effusion": "Pleural effusion",
        "Pleural Other": "Pleural thickening",
        "Fracture": "Clavicle fracture, Rib fracture",
    },
    without="Aortic enlargement, Calcification, Emphysema, Enlarged PA, ILD, Lung cavity, Lung cyst, Mediastinal shift,"
    "Pulmonary fibrosis, Other lesion, COPD, Tuberculosis, Other disease, Other diseases",
)
# The 14 of the VinBigData competition, whose boxes are of local labels alone.
VINBIGDATA: Final = {
    word: VINDR[word]
    for word in map(
        plain,
        (
            *("Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Consolidation", "ILD"),
            *("Infiltration", "Lung Opacity", "Nodule/Mass", "Other lesion", "Pleural effusion", "Pleural thickening"),
            *("Pneumothorax", "Pulmonary fibrosis", "No finding"),
        ),
    )
}

# Shih et al. 2019 (doi:10.1148/ryai.2019180041). As torchxrayvision has it, an opacity that suggests pneumonia is both.
RSNA: Final = _vocabulary(
    {"No Finding": "Normal", "Lung Opacity": "Lung Opacity", "Pneumonia": "Lung Opacity"},
    without="No Lung Opacity / Not Normal",
)
RSNA_OBSERVATIONS: Final = ("No Finding", "Lung Opacity", "Pneumonia")

# Kermany et al. 2018 (doi:10.1016/j.cell.2018.02.010).
KERMANY: Final = _vocabulary({"No Finding": "NORMAL", "Pneumonia": "PNEUMONIA"})

# Of sets without a layout of their own, such as folders of classes.
_OTHERS: Final = _vocabulary(
    {"Pneumonia": "viral pneumonia, bacterial pneumonia, pneumonia viral, pneumonia bacterial"}
)


@lru_cache(maxsize=4096)
def observations_of(word: str) -> tuple[str, ...] | None:
    """Observations that a word stands for, whoever's: CheXpert's names and `normal` first, then those of other sets.

    Empty for a word that has no counterpart, as Emphysema; None for one that no data set is known to have.
    """
    observation = named(word)
    if observation is not None:
        return (observation,)
    known = (words.get(plain(word)) for words in (NIH, VINDR, PADCHEST, _OTHERS))
    return next((found for found in known if found is not None), None)


def class_folder(path: str) -> str:
    """The folder of an image that may be named after what it shows: not `images` in `Normal/images`; empty without."""
    folders = [part for part in PurePosixPath(path).parts[:-1] if plain(part) not in HOLDS_IMAGES]
    return folders[-1] if folders else ""


def class_of(path: str) -> tuple[str, ...] | None:
    """Observations that the folder of an image is named after, as in `Effusion/`, `Normal/images/`; None if of none."""
    folder = class_folder(path)
    return observations_of(folder) if folder else None
