"""A fake APNs for tests and demonstrations."""
