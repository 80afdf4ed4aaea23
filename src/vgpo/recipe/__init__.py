"""From a YAML file to a trained run: checked settings, loaded parts, checks of data and machine, training."""
