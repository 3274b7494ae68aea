"""Terms: phrases that name an observation, a structure, or neither."""

# Structures are not observations, but "normal" or "enlarged" decides the observations listed here.
# Term label -> observations: absent if the structure is normal, present if it is enlarged.
WHEN_NORMAL: dict[str, tuple[str, ...]] = {
    "HEART": ("Cardiomegaly",),
    "MEDIASTINUM": ("Enlarged Cardiomediastinum",),
    "HEART AND MEDIASTINUM": ("Cardiomegaly", "Enlarged Cardiomediastinum"),
    "LUNGS": ("Lung Opacity", "Consolidation"),
    "PLEURA": ("Pleural Effusion",),
    "VESSELS": ("Edema",),
    "BONES": ("Fracture",),
    "CHEST": (),
}
WHEN_ENLARGED: dict[str, str] = {
    "HEART": "Cardiomegaly",
    "MEDIASTINUM": "Enlarged Cardiomediastinum",
    "HEART AND MEDIASTINUM": "Enlarged Cardiomediastinum",
}
# Abnormal but outside the 14: as in the CheXpert labeler, such a mention rules out "No Finding".
OTHER = "OTHER"
# "No acute ...", "no active ...": denies nothing in particular, but is how reports say "No Finding".
GENERAL = "GENERAL"
# Longer phrases whose head would otherwise be read as a finding, such as "pericardial effusion".
SKIP = "SKIP"


def _each(first: str, second: str) -> str:
    """Every pairing of two bar-separated lists of words."""
    return "|".join(f"{one} {other}" for one in first.split("|") for other in second.split("|"))


_GRADES = "enlarged|widened|prominent|large|enlargement of the|enlargement of|widening of the|prominence of the"
# Phrases of the CheXpert labeler, plus other wordings in the development half of Open-i. Each is also matched with a
# final s; the longest match counts.
# Term label (an observation or one of those above) -> its phrases, separated by bars, in lower case.
TERMS: dict[str, str] = {
    "Enlarged Cardiomediastinum": _each(
        _GRADES,
        "mediastinum|superior mediastinum|upper mediastinum|mediastinal silhouette|mediastinal contour"
        "|cardiomediastinal silhouette|cardiomediastinal contour",
    )
    + "|mediastinal widening|mediastinal enlargement|mediastinal prominence|mediastinal mass|paratracheal prominence"
    "|paratracheal soft tissue prominence",
    "Cardiomegaly": _each(
        _GRADES, "heart|heart size|heart silhouette|cardiac silhouette|cardiac shadow|cardiac contour"
    )
    + "|cardiomegaly|cardiac enlargement|heart enlargement|cardiac silhouette enlargement",
    "Lung Opacity": (
        "opacity|opacities|opacification|opacified|infiltrate|infiltration|airspace disease"
        "|airspace process|airspace density|airspace densities|lung density|pulmonary density"
        "|increased density|interstitial markings|interstitial prominence|interstitial changes|interstitial pattern"
        "|interstitial thickening|reticular markings|interstitial disease|interstitial lung disease"
        "|reticulonodular pattern|reticular pattern|retrocardiac density|basilar density|streaky density"
        "|streaky densities|patchy density|patchy densities|lower lobe density|basilar densities|alveolar disease"
        "|interstitial process|ill defined density|parenchymal density|parenchymal densities"
        "|airspace shadowing|airspace change|shadowing"
        "|ground glass change|reticular shadowing|airspace filling|consolidative change"
        "|patchy change|hazy change|white out|whiteout|white lung"
    ),
    "Lung Lesion": (
        "nodule|nodularity|mass|masses|nodular opacity|nodular opacities|nodular density|nodular densities|tumor"
        "|neoplasm|carcinoma|cavitary lesion|cavitating lesion|cavitated lesion|lung lesion|pulmonary lesion"
        "|nodular opacification|lump|lung cancer"
        "|metastases|metastasis|metastatic disease|malignancy|coin lesion|space occupying lesion|cannonball lesion"
    ),
    "Edema": _each(
        "prominent|increased|engorged|indistinct|prominence of the|engorgement of the",
        "vasculature|vascularity|pulmonary vasculature|pulmonary vascularity|central pulmonary vasculature",
    )
    + "|edema|heart failure|chf|congestion|venous hypertension|vascular engorgement|fluid overload|volume overload"
    "|vascular redistribution|congestive failure|vascular prominence|indistinct vascular|prominent pulmonary vascular"
    "|increased pulmonary vascular|increased lung vascularity|cardiac failure|failure|kerley|cephalization"
    "|upper lobe blood diversion|upper lobe diversion|upper lobe venous diversion|blood diversion"
    "|decompensation|edematous",
    "Consolidation": "consolidation|consolidative|consolidated",
    "Pneumonia": "pneumonia|bronchopneumonia|pneumonitis|infection|infectious",
    "Atelectasis": (
        "atelectasis|atelectases|atelectatic|collapse|collapsed lung|collapsed left lung|collapsed right lung"
        "|lung is collapsed|lungs are collapsed|lobe is collapsed|lobes are collapsed|collapsed lobe|atelectasia"
    ),
    "Pneumothorax": "pneumothorax|pneumothoraces|pneumothoraxes|hydropneumothorax|hemopneumothorax|pyopneumothorax",
    "Pleural Effusion": (
        "effusion|pleural fluid|hemothorax|hydrothorax|fluid in the fissure|fluid in the minor fissure"
        "|fluid in the major fissure|fluid in the right fissure|fluid in the horizontal fissure"
        "|fluid in the oblique fissure"
        "|fissural fluid|pleural collection|empyema|pyothorax|chylothorax|subpulmonic fluid|loculated fluid"
        "|layering fluid"
    ),
    "Pleural Other": (
        "pleural thickening|fibrothorax|pleural scarring|pleural scar|pleural parenchymal scarring"
        "|pleural parenchymal scar|pleural plaque|pleural calcification|thickening of the pleura"
        "|pleural and parenchymal scarring|calcified pleural plaques|pleural based thickening|apical capping"
        "|pleural cap|apical cap|apical thickening|pleuroparenchymal scarring"
    ),
    "Fracture": "fracture|fractured",
    "Support Devices": (
        "pacemaker|pacer|aicd|icd|defibrillator|generator|picc|catheter|central line|central venous line|chest tube"
        "|tracheostomy|portacath|mediport|chest port|port|stent|prosthesis|prostheses|prosthetic|valve replacement"
        "|hardware|stimulator|arthroplasty|intubated|balloon pump|loop recorder|rods|venous access device"
        "|subclavian line|jugular line|nasogastric|artificial valve|pigtail|drain|ett|dobhoff|swan ganz|screws"
        "|orthopedic plate|tube|portacatheter|pacing device|cardiac device|cardiac monitor|shunt|fixation|fusion"
        "|bone anchor|anchors|occluder|closure device|vascular filter|ivc filter|tubing|svc|superior vena cava"
        "|cavoatrial junction|caval atrial junction|support lines|electrodes|lead|support device|monitoring device|iabp"
        "|impella|ecmo|cannula|lvad|rvad|ventricular assist device|assist device|ngt|ogt|dobbhoff|feeding tube|et tube"
        "|cvc|cvl|central venous access|central access|vascath|vas cath|permcath|permacath|hickman|broviac|port a cath"
        "|gastrostomy|endoprosthesis|crt|tavi|tavr|mitraclip|watchman|amplatzer|pacing wire|pacemaker wire|annuloplasty"
        "|mechanical valve|linq|tracheal tube|swan|ij|ij line|trach|ppm|introducer|introducer sheath|cordis"
        "|dialysis line|biventricular device"
    ),
    "HEART": "heart|cardiac",
    "MEDIASTINUM": "mediastinum|mediastinal",
    "HEART AND MEDIASTINUM": (
        "cardiomediastinal|cardio mediastinal silhouette|cardiac mediastinal silhouette|cardiomediastinum"
    ),
    "LUNGS": "lung",
    "PLEURA": "costophrenic angle|cp angles|costophrenic sulci|pleural space|costophrenic recesses|costophrenic recess"
    "|pleural recess|pleural recesses",
    "VESSELS": "vascularity|vasculature|pulmonary vascular",
    "BONES": "bony structures|osseous structures|skeletal structures|bones|bony thorax|thoracic spine|ribs",
    "CHEST": "chest|examination|exam|study|radiograph",
    OTHER: (
        "tortuous|tortuosity|ectatic|ectasia|unfolded|uncoiled|scoliosis|kyphosis|degenerative|degeneration"
        "|spondylosis|osteophyte|arthritic|arthritis|atherosclerosis|atherosclerotic|calcified|calcification|granuloma"
        "|granulomatous|granulomata|emphysema|emphysematous|copd|chronic obstructive pulmonary disease|hyperinflation"
        "|hyperinflated|hyperexpanded|hyperexpansion|hyperlucent|hyperaerated|hypoinflation|hypoinflated"
        "|hypoventilation|low lung volumes|lung volumes are low|low volumes|hypoaeration|scar|scarring|fibrosis"
        "|fibrotic|hernia|eventration|elevated|elevation|deformity|deformities|wedging|osteopenia|osteoporosis"
        "|demineralization|blunting|blunted|flattened|flattening|crowding|clip|sternotomy|wires|cabg|bypass"
        "|bronchiectasis|bullous|bullae|bleb|tuberculosis|aneurysm|pectus|obscured|density|densities|lucency|lucencies"
        "|air trapping|volume loss|adenopathy|lymphadenopathy|pericardial effusion|pneumoperitoneum|bronchitic"
        "|foreign body|bullet|sutures|staples|surgical changes|mastectomy|compression|height loss|loss of height"
        "|sclerotic|sclerosis|thickening|peribronchial cuffing|spurring|dextroscoliosis|levoscoliosis|dish"
        "|pulmonary hypertension|prominent|prominence|interstitial|fat pad|epicardial fat|cholecystectomy"
        "|post surgical|postsurgical|postoperative|subsegmental|hyperostosis|obscuration|lordosis|dislocation"
        "|pneumomediastinum|free air|free intraperitoneal air|sequela|sequelae|limited|suboptimal|bronchitis|calcific"
        "|metallic|mitral annulus|curvature|granulomatous infection|breast implants|breast prostheses|piercing"
        "|dilated|endplate|prominent superior vena cava|superior vena cava is prominent|dilated superior vena cava"
        "|superior vena cava is dilated|superior vena cava syndrome|superior vena cava obstruction|prominent svc"
        "|svc is prominent|dilated svc|svc is dilated|svc syndrome|svc obstruction"
    ),
    GENERAL: "acute|active|cardiopulmonary|abnormality|abnormalities|disease|finding|findings",
    SKIP: (
        "mass effect|heart border|cardiac border|lung volumes|body mass|disc disease|joint effusion|breast prosthesis"
        "|carcinoma in situ|soft tissue mass|breast mass|line of sight|thymic tissue|cardiac apex|chest pain"
        "|chest wall|port of entry|mediastinal shift|cardiac valve|lung apex|lung apices|mediastinal clips"
        "|coronary artery disease|nodular contour|left heart|right heart|mediastinal lymph nodes"
        "|mediastinal adenopathy|mediastinal calcifications|lung disease|portable|stent graft site"
        "|degenerative disease|cardiac and pulmonary|respiratory failure|renal failure|liver failure"
        "|hepatic failure|kidney failure|multiorgan failure|multi organ failure|organ failure|nasal congestion"
        "|muscle mass|sinus congestion|urinary tract infection|urinary infection|failure to|hardware failure"
        "|vertebral collapse|vertebral body collapse|collapsed vertebra"
        "|nipple shadow"
    ),
}
# Terms that imply a second observation: part of the text -> that observation.
ALSO = {
    "hydropneumo": "Pleural Effusion",
    "hemopneumo": "Pleural Effusion",
    "pyopneumo": "Pleural Effusion",
    "nodular opac": "Lung Opacity",
    "nodular dens": "Lung Opacity",
}
