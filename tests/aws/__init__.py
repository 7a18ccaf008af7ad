"""A strict AWS on this machine: API Gateway's own rules, and three places where they are in force."""
