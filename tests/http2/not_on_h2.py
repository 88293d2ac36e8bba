"""What the reference engine cannot be made to do, and why: these tests are for the compiled engine.

Each entry is a test that fails on the reference engine; one that passes is an error, so the list
cannot grow stale.
"""

NOT_ON_H2: dict[str, str] = {}
