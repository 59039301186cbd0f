"""What `hap doctor` looks at. Nothing here imports torch: a broken installation is what it has to be able to tell."""
