"""Sinks, one file each, named by an address."""
