"""What a run is asked for and what it consists of: from a suite to a plan of jobs, each named by what it depends on."""
