"""`python -m densify` is `densify`."""

from densify.cli import main

if __name__ == "__main__":
    main()
