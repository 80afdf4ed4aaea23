"""The verl host: Visually-Guided Policy Optimization on verl's trainer, from one machine to a cluster."""
