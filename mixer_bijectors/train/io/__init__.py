"""Files and checkpoints that are written whole or not at all, logs, and errors for users."""
