"""The commands of the command line. Each imports what it needs when it runs, so that `gateway --help` is quick."""
