"""Scorings written in the formats that sleep laboratories' programs read, each read back by its reader beside."""
