"""EDF to shards with Ray: ``python -m shards``."""
