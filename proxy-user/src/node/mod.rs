//! The role machine: the only owner of role and epoch. Pure.
