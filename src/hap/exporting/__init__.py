"""Trained models for programs that do not know hap: `hap export`."""
