"""Long random runs, each a program: `python -m tests.campaigns.NAME --cases N --seed S`."""
