"""Speed and memory beside a baseline, as ratios measured in one run."""
