"""Tables, records, forecasts and progress as people read them."""
