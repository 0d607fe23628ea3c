"""`python -m asterism` is the command line; `accelerate launch -m asterism train ...` trains on several devices."""

from asterism.cli.app import main

if __name__ == "__main__":
    main()
