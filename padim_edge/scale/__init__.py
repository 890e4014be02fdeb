"""Scale: the work of fit, run and eval spread over the machines of a Ray cluster."""
