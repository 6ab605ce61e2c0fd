//! Tandem cache.
