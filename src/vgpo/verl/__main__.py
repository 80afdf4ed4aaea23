"""`python -m vgpo.verl RECIPE`."""

from vgpo.verl.main import main

if __name__ == "__main__":
    main()
