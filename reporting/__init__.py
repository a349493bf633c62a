"""Results and what is made of them: run folders, results.json, log parsing, tables, pictures."""
