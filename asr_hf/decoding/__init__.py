"""From features to words: search, tuning of scales, scoring."""
