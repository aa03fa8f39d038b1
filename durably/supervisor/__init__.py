"""What watches: children, channels, signals, respawning, the loop."""
