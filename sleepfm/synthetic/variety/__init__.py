"""Nights that vary more than people do, for training: people, recorders and scorers drawn from ranges wider than life."""
