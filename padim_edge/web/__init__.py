"""What every server of ours has: a thread of its own, a token, limits, headers."""
