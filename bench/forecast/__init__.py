"""What a run will take, before anything is started: effort and speed to seconds, seconds to a schedule."""
