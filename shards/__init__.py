"""EDF to shards with Ray: ``python -m shards``.

One Ray task is one shard: it converts a few recordings one after another and leaves a tar and, after it, a JSON that
marks it as done. The driver plans (``plan.json``), keeps a bounded number of tasks in flight, and writes the
manifest when all are done, ``dataset.json`` last. Whatever is killed, the same command goes on from there, and the
result has the same bytes.
"""
