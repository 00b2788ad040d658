"""Sampling with the host's own samplers.

turn_sampler        a turn's noise and sampler as NOISE and SAMPLER
guiders             the host's guiders, and noise levels
reference_latents   a MODEL that sees images of a session
memory_wrapper      the wrapper by which a MODEL sees a session
mask_constraint     a mask that holds at every step
preview             progress with latent previews
"""
