"""`python -m vgpo.verl RECIPE`."""

import sys

try:
    from vgpo.verl.main import main
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed here: pip install 'vgpo[verl]', or see docs/scale_out.md")

if __name__ == "__main__":
    main()
