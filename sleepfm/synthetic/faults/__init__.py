"""What goes wrong in real recordings and their scorings, drawn into a synthetic night at the rates of ``rates.yaml``."""
