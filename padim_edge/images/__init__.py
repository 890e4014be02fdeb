"""Images: found, decoded and prepared; nothing else in the package does so on a CPU."""
