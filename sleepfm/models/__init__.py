"""NeuroNet, SynthSleepNet and their parts. Knows nothing of files."""
