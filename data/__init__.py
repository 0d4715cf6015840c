"""Everything between a disk and an array: videos, data sets, batches."""
