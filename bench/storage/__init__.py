"""The run folder: journal and artifacts, and how a run that is whole is recognised."""
