"""Many runs: methods, settings and seeds over one recipe, compared in tables, curves and a page."""
