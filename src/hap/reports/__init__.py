"""What a run or a sweep leaves, put together to be looked at."""
