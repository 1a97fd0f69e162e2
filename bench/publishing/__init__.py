"""Published sets: one folder of tables, figures and a page that people read, cite and compare; no torch here."""
