"""The latent diffusion model: loading and sampling."""
