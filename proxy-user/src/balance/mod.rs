//! Choice of a server: pools, weights, health, retry rules. Pure.
