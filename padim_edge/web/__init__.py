"""What every server of ours stands on: limits, token, checks; and nothing of what it serves."""
