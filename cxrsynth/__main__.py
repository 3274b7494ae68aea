"""`python -m cxrsynth`, which `accelerate launch -m cxrsynth` needs."""

from cxrsynth.cli import main

if __name__ == "__main__":
    main()
