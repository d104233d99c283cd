"""Shards in, batches out: deterministic and resumable."""
