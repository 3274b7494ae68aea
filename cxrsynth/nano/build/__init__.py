"""How nano is built: `python -m cxrsynth.nano.build --data DIR --work DIR`, one file per network."""
