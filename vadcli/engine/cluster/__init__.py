"""Runners for clusters."""
