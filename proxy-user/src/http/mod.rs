//! HTTP/1.1 heads and framing (RFC 9112): strict parser, strict writer. Pure.
