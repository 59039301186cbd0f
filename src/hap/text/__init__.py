"""Sentences as numbers: tokenisers and where their vocabularies come from. Used by all layers."""
