"""A synthetic cohort that passes for an SHHS download: hypnograms, events, signals, EDF and NSRR XML."""
