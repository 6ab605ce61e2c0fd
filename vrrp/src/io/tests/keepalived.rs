//! Debian's keepalived as a peer.
