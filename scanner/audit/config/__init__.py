"""What people write: audit.toml and waivers, read with every mistake named."""
