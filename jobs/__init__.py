"""Runs products on Ray: the only package that knows Ray, the clock, the environment and the command line."""

__version__ = "0.1.0"
