"""The embedded model: a small real latent diffusion model in Stable Diffusion layout."""
