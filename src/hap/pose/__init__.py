"""What joints are and where they lie: skeletons, crops, heat maps, ground truth. Arrays only; every layer uses it."""
