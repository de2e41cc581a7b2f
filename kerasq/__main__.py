"""`python -m kerasq`: the command line."""

from kerasq.command_line import script

if __name__ == "__main__":
    script()
