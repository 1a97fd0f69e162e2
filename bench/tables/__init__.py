"""From the journal to records, and from records to prices and leaderboards; no torch here."""
