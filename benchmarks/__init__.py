"""What our routes cost, as ratios to a byte relay that is measured in the same run. See README.md."""
