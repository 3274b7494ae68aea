"""What is measured of a set of images besides rewards: fidelity, diversity, utility, memorization, quality."""
