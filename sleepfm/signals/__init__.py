"""Signals: recordings, montage, annotations, filters, labels, quality. Knows nothing of torch."""
