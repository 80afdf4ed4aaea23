"""One module per subcommand of `vgpo`. Heavy imports live here, so that `vgpo --help` does not wait for them."""
