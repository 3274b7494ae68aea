"""How the numbers of each section of the page are computed, in a paragraph or two a reader can open.

The longer text, with what each interval is of, is docs/audit.md; both say the same.
"""

METHODS: dict[str, tuple[str, ...]] = {
    "verdicts": (
        "Do they look right: the Fréchet distance between audited and real images over that between real images of "
        "different patients, its floor, at the same number of images (see Fidelity); beside it, how often readers tell "
        "them apart.",
        "Do they help: for how many findings the AUROC on held-out real patients rises or falls with synthetic images, "
        "counted where the 95% interval of the difference lies on one side of 0 (see Utility). The floor is what real "
        "images alone reach; below that, 0.5 is chance.",
        "Can a patient be found: images nearer to a real one than real images of different patients are to each other. "
        "The floor is how many real images of patients held out of the search are flagged in the same way, though they "
        "are no copies; for recognized patients, how many real images of other patients are (see Privacy).",
    ),
    "compared": (
        "Both columns are the numbers of the two audits, nothing is measured anew. They stand here only where both "
        "audits measured alike: with the same networks, on the same reference, members or non-members (by a keyed "
        "digest of their images), under the same rules for what counts kept images, and on as many images for what "
        "depends on their number.",
        "Apart: the two 95% intervals do not meet. This is stricter than a test of the difference at 5%, so "
        "differences may be real where intervals overlap (Schenker and Gentleman, The American Statistician 55, 2001).",
    ),
    "reasons": (
        "A quality check measures one number of each image at 256 x 256, and rejects it beyond the limit that stands "
        "under its meaning; limits were chosen on real images with and without the fault. Duplicates are images with "
        "equal pixels, or with a high correlation of fine detail once both are small. Near-duplicates of real images: "
        "see Memorization.",
        "Rules are in their table: a threshold on a reward, a percentile of the reference's own values of it, or the "
        "best share of each finding's images. Shares are of all images that could be read.",
    ),
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
        "random: from 20 on each side by KID and MMD, which do not depend on their number, from 50 by all measures.",
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
    "subgroups": (
        "View, sex and age group are those of each image's table, report or DICOM header; images of which they are not "
        "known are counted apart. Means are over the images whose reward is defined.",
        "Fidelity of a subgroup: its kept images against the real images of the same subgroup, as under Fidelity.",
    ),
    "memorization": (
        "The nearest real image of every audited image is searched by features fitted on the reference, then verified "
        "by the correlation of the two images once they are registered. A second look lets patches of the image vote "
        "for a real image, a size and a place, and compares the window (39% of the width) in which the two agree best. "
        "A third look compares the image as it is framed, neither registered nor moved, with every real image: blends "
        "of two images, and halves beside another's, have no position of their own that registration could find. A "
        "fourth compares unmoved windows (31% of the width) with those of the real images that its patches vote for. "
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
    "membership": (
        "Attacks give each image a number that is higher for members, if the model treats what it was trained on "
        "otherwise: the training loss (Carlini et al., arXiv 2301.13188), PIA (Kong et al., arXiv 2305.18355), SecMI "
        "(Duan et al., arXiv 2302.01316) and, where all images have prompts, CLiD (Zhai et al., arXiv 2405.14800).",
        "AUC: how often a member's number is above a non-member's. Found: the share of members above the number that "
        "only so many non-members exceed (Carlini et al., arXiv 2112.03570). Combined, and without the model: a "
        "logistic regression fitted on one half of the patients and measured on the other; the latter sees features of "
        "the images alone (after Das et al., arXiv 2406.16201). Non-members of the members' patients are left out; the "
        "95% intervals resample patients.",
    ),
    "utility": (
        "Half of the real patients are tested on, whatever was trained on. Rejected images and copies are never "
        "trained on. A finding that is uncertain or not mentioned counts as absent, in training and in testing; images "
        "without any stated finding are left out. Findings are tested where ten patients have them, and ten lack them. "
        "Differences to real images alone are of the same resampled patients (bootstrap).",
        "A linear probe on the features (logistic regression, L2 chosen by cross-validation by patient), or the "
        "network of --utility-model, which takes as many steps on real images in every way of training. Balanced: as "
        "many synthetic images of each sex in each age group; for a probe also with and without the finding, where "
        "there are enough. Synthetic then real: the penalty of the probe is centered on what synthetic images taught, "
        "and the strength of that is chosen by cross-validation; a network is trained on synthetic images first.",
        "Underdiagnosis: share of the patients with a finding who are called negative (for No Finding: who are called "
        "normal; Seyyed-Kalantari et al., Nature Medicine 2021), at the threshold that calls 80% of the others "
        "negative among real training patients held out. The intervals hold the threshold fixed.",
    ),
    "protocol": (
        "The benchmark's names for what the sections above measure, of all images, rejected ones included; its rows "
        "are copied from the source under the table, and only where both used the same network by name and width.",
        "FID, KID, precision, recall, density and coverage: as under Fidelity, five nearest neighbors. Alignment "
        "Score: mean of the reward consistency. Re-ID Score: as under Re-identification, of images and the real ones "
        "that their own reports are of; Latent Distance: root mean squared difference of the features of these pairs. "
        "Downstream AUROC: mean over all findings that classifiers trained on kept synthetic images were tested on; "
        "the means of Utility leave out those that real images could not be trained on.",
    ),
    "readers": (
        "Accuracy: share of answers real or synthetic that are right; sensitivity: of synthetic images, specificity: "
        "of real ones. Wilson intervals of 95% at the effective number of answers, whose variance is clustered by "
        "image and by reader (Cameron, Gelbach and Miller, Journal of Business & Economic Statistics 29, 2011).",
        "Quality: each image's mean over readers is one value; the interval of the difference is Welch's. Agreement: "
        "Cohen's kappa of two readers (quadratic weights for quality) and Fleiss' of all, on the images that all of "
        "them answered. Seconds: while the image was on the screen, also when it was looked at again, up to the text "
        "of its report.",
    ),
}
