"""Train a run from a YAML file: validated settings, loaded components, checks of data and machine, training."""
