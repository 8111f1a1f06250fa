"""How a flow is run, not what it is: in parallel, or without keeping activations."""
