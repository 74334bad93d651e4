"""Checks on a built model, a module each; every one returns findings and changes nothing."""
