"""Judges a release: win rates with intervals, content, controls, and pictures to look at."""
