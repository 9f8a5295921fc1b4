"""Diffusion in one noise convention: ``x = x0 + sigma * noise``, and a denoiser is a function of (x, sigma) to x0.

Whatever a model predicts (noise, v, velocity of a flow) and however it scales its input is the business of the adapter.
"""
