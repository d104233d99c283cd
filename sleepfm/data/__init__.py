"""Shards in, batches out: deterministic and resumable; and the synthetic cohort."""
