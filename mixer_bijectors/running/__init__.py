"""How a flow is run, in place of what it is: its sequential direction in parallel."""
