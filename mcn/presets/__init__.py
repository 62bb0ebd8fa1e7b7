"""Recipes that come with the package: one YAML file a preset, one block a command."""
