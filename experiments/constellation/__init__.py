"""The paper's claims at scales that anyone can run: a ladder of models, its tables and figures, its open questions, and our default."""
