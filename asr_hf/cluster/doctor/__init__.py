"""`asr-hf doctor`: each rank tells what it knows (facts), rank 0 judges it (checks) and measures the links."""
