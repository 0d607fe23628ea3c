"""asterism: one generalist, several specialists, and the model each query needs."""
