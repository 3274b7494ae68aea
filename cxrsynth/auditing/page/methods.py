"""How the numbers of each section of the page are computed, in a paragraph or two a reader can open.

The longer text, with what each interval is of, is docs/audit.md; both say the same.
"""

METHODS: dict[str, tuple[str, ...]] = {
    "rewards": (
        "Posture: minus the distance to an upright, centered chest, in units of 5% of the width, 10% of scale and 5 "
        "degrees.",
        "Diagnosis: mean log-likelihood (nats) of the findings that the report states or denies, both sides weighted "
        "equally; uncertain findings, and those unknown to the reward model, are left out.",
        "Consistency: cosine similarity of image and report in a dual encoder.",
        "Networks of your own have units of their own: the unit stands above each histogram, the network under "
        "Provenance.",
    ),
    "findings": (
        "Findings are read from each image's report or labels. Means are over the images whose reward is defined.",
    ),
    "obedience": (
        "For each finding, AUROC of the classifier's probability between the images whose report states it and the "
        "others; the 95% interval resamples reports.",
    ),
    "fidelity": (
        "Each image becomes a row of features. As many audited as real images are compared, 5,000 at most, chosen at "
        "random.",
        "Fréchet distance: the squared one of two Gaussians (Heusel et al., arXiv 1706.08500). Extrapolated: a line in "
        "one over the number of images, through the whole sets and through them without one block of images after the "
        "other, to infinitely many (after Chong and Forsyth, arXiv 1911.07023).",
        "KID: squared maximum mean discrepancy of a polynomial kernel, unbiased (Binkowski et al., arXiv 1801.01401). "
        "MMD by patient: the same without pairs of images of one patient or report.",
        "Precision and recall (Kynkäänniemi et al., arXiv 1904.06991), density and coverage (Naeem et al., arXiv "
        "2002.09797): by the five nearest neighbors. MS-SSIM (Wang et al., 2003): mean over random pairs.",
        "Floor: the same measure between two halves of the reference that share no patient, mean of ten splits. In "
        "the intervals, images of one patient or report are resampled together where at least 20 are known; in KID "
        "they are not.",
    ),
    "memorization": (
        "The nearest real image of every audited image is searched by features fitted on the reference, then verified "
        "by the correlation of the two images once they are registered. A second look lets patches of the image vote "
        "for a real image, a size and a place, and compares the window (39% of the width) in which the two agree best. "
        "Negatives are turned back first. The threshold is what real images of different patients show of each other.",
        "Sensitivity: copies planted in the reference are searched in the same way. False alarms: real images of "
        "patients held out of the reference.",
    ),
    "reidentification": (
        "A network was trained to give images of one patient similar embeddings; the score of two images is their "
        "cosine. Each audited image is compared with every image of the reference, and with the one that its own "
        "report is of, where identifiers say which that is.",
        "The threshold is the 99th percentile of the best scores that images of the reference have with other "
        "patients' images: 1% of images of patients who are not in the reference would match. False matches are "
        "counted with the threshold of the other half of the patients. The last row shows what would be found: "
        "patients of whom one image is matched to another.",
    ),
    "utility": (
        "Half of the real patients are tested on, whatever was trained on. Rejected images and copies are never "
        "trained on. Differences to real images alone are of the same resampled patients (bootstrap).",
        "A linear probe on the features (logistic regression, L2 chosen by cross-validation by patient), or the "
        "network of --utility-model, which takes as many steps on real images in every way of training. Balanced: as "
        "many synthetic images of each sex in each age group; for a probe also with and without the finding, where "
        "there are enough. Synthetic then real: the penalty of the probe is centered on what synthetic images taught, "
        "and the strength of that is chosen by cross-validation; a network is trained on synthetic images first.",
        "Underdiagnosis: share of the patients with a finding who are called negative (for No Finding: who are called "
        "normal; Seyyed-Kalantari et al., Nature Medicine 2021), at the threshold that calls 80% of the others "
        "negative among real training patients held out. The intervals hold the threshold fixed.",
    ),
}
