"""The rooms behind the local page: limits, security, uploads, jobs in worker processes, and the routes."""
