"""What executes: the step context, one run's execution, the claiming loop, the heartbeat, the keeper."""
