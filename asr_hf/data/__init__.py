"""Corpora on disk → features → padded minibatches; plans of minibatches."""
