"""What is measured of a set of images beside rewards: fidelity, diversity, memorisation."""
