"""Security: who a site is, and what it seals."""
