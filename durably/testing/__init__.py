"""What users test their jobs with."""
