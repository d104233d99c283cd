"""Tasks, metrics, probes, fine-tuning and reports."""
