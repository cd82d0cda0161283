"""From files to batches: sources, scan, crops, buckets and the tensor cache. Knows no model."""
