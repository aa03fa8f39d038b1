"""A campaign of faults against real supervisors, and an independent judge of what they did."""
