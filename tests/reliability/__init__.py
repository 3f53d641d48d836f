"""Proof that nothing is lost: a checker outside of the process, and the runs that try to make it lie."""
