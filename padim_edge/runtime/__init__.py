"""Runtime: what runs graphs. The only place that imports an inference library."""
