"""How nano is made: `python -m cxrsynth.nano.build --data DIR`, one file a network."""
