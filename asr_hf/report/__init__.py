"""Tables and pages of results: draws, measures nothing."""
