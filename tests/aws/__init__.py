"""A strict AWS on this machine: API Gateway's rules, a fake and a proxy that keep them, an emulator."""
