"""``python -m bench dashboard``: the pages with many jobs, workers and open tabs."""
