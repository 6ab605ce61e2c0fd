//! The guardian process: role shell, peer links, steering, engine supervision, admin.
pub mod status;
pub mod steering;
