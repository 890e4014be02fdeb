"""A detector over HTTP, and for servers of others."""
