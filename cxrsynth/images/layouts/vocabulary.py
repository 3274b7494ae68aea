"""Words that data sets have for what an image shows, and the observations that these stand for."""

from collections.abc import Mapping
from typing import Final, TypeAlias

from cxrsynth.images.layouts.paths import named, plain

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


def observations_of(word: str) -> tuple[str, ...] | None:
    """Observations that a word stands for, whoever's: CheXpert's and NIH's names and `normal`; None if unknown."""
    observation = named(word)
    return NIH.get(plain(word)) if observation is None else (observation,)


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
