//! The guardian process: role shell, peer links, steering, engine supervision, admin.
pub mod admin;
pub mod health;
pub mod status;
pub mod steering;
