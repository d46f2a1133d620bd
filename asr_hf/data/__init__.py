"""Corpora on disk → features → minibatches; plans of minibatches."""
