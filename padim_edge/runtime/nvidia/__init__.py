"""Engines on NVIDIA GPUs."""
