"""Sources, one file each, named by an address."""
