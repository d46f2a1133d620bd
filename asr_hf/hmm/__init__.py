"""Words to states: lexicon, topology, decision tree, n-gram, graphs, GMM flat start, alignment."""
