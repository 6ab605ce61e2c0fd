//! Configuration: TOML in, types that cannot be wrong out. Pure.
