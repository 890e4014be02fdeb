"""Reports: one HTML file each that opens from disk, for whoever wants to look."""
