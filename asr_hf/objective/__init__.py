"""θ and a sample in, sums with their frame counts out; the one face that optimisers see."""
