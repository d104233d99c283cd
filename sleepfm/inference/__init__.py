"""A model applied to a night: epochs in, embeddings, probabilities and events out."""
