"""Check before training whether VGPO has something to gain for a model on a dataset."""
