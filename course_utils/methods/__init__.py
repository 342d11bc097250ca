"""Attacks, defences, poisons and mutual information."""
