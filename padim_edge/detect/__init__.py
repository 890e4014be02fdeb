"""Detect: a fitted detector judging frames, what it says drawn as pictures and measured."""
