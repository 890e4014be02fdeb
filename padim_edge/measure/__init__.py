"""Measure: latency, floors, power, and what this machine can run."""
