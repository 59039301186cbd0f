"""From files to batches: readers, transforms, samplers, one Dataset and one DataModule for all tasks."""
