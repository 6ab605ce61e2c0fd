//! The two small demo backends of the configuration-less start.
