"""Scorings in every format, read as one, and the labels of epochs that they give."""
